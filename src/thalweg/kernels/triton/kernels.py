"""The kernels of :mod:`thalweg.kernels.triton`, which says how they are launched and what their tables hold.

All scalars come as float64 and are rounded once to the dtype that is computed in: a changed hyperparameter compiles
nothing, and a float64 parameter loses nothing.
"""

import triton
import triton.language as tl

from thalweg.kernels.eightbit import BLOCK as RUN_OF_SCALE
from thalweg.kernels.eightbit import MARGIN
from thalweg.kernels.triton.address_tables import COLUMNS

_COLUMNS = tl.constexpr(COLUMNS)
_RUN = tl.constexpr(RUN_OF_SCALE)
_MARGIN = tl.constexpr(MARGIN)


@triton.jit
def touch(x):
    """Write one number."""
    tl.store(x, 0.0)


@triton.jit
def _noise(seed, index):
    """16 random bits, of uint32: :func:`thalweg.kernels.rounding.noise`."""
    h = index * 0x9E3779B1 + seed
    h ^= h >> 16
    h *= 0x21F0AAAD
    h ^= h >> 15
    h *= 0x735A2D97
    h ^= h >> 15
    return h & 0xFFFF


@triton.jit
def round_to_bfloat16(x, seed, index):
    """Float32 ``x``, rounded up or down to a bfloat16 by a hash: :func:`thalweg.kernels.rounding.stochastic_round`.

    ``seed`` and ``index`` are uint32.
    """
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + _noise(seed, index)) & 0xFFFF0000
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, rounded, bits).to(tl.float32, bitcast=True)


@triton.jit
def _load(pointer, lanes, count, DTYPE: tl.constexpr, MASKED: tl.constexpr, EVICT: tl.constexpr):
    # Only an unmasked load is sure to be wide: what a mask that may end anywhere guards is loaded one by one.
    if MASKED:
        x = tl.load(pointer + lanes, mask=lanes < count, other=0.0, eviction_policy=EVICT)
    else:
        x = tl.load(pointer + lanes, eviction_policy=EVICT)
    return x.to(DTYPE)


@triton.jit
def _store(pointer, lanes, count, x, seed, index, STOCHASTIC: tl.constexpr, MASKED: tl.constexpr):
    if STOCHASTIC and pointer.dtype.element_ty == tl.bfloat16:
        x = round_to_bfloat16(x.to(tl.float32), seed.to(tl.uint32), index)
    x = x.to(pointer.dtype.element_ty)
    if MASKED:
        tl.store(pointer + lanes, x, mask=lanes < count)
    else:
        tl.store(pointer + lanes, x)


@triton.jit
def _load_state(
    buffer, start, count, DTYPE: tl.constexpr, MASKED: tl.constexpr, EVICT: tl.constexpr, BLOCK: tl.constexpr
):
    pointer, scales, fractions = buffer
    lanes = start + tl.arange(0, BLOCK)
    if pointer.dtype.element_ty != tl.uint8:
        x = _load(pointer, lanes, count, DTYPE, MASKED, EVICT)
    else:
        values, _, _ = fractions
        x = tl.load(values + _load(pointer, lanes, count, tl.int32, MASKED, EVICT)).reshape(BLOCK // _RUN, _RUN)
        runs = start // _RUN + tl.arange(0, BLOCK // _RUN)
        scale = _load(scales, runs, count // _RUN, tl.float32, MASKED, "")
        x = (x * scale[:, None]).reshape(BLOCK).to(DTYPE)
    return x


@triton.jit
def _store_state(buffer, start, count, x, seed, index, SIGNED: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    pointer, scales, fractions = buffer
    lanes = start + tl.arange(0, BLOCK)
    if pointer.dtype.element_ty != tl.uint8:
        _store(pointer, lanes, count, x, seed, index, True, MASKED)
    else:
        code, scale = encode(x.to(tl.float32), seed.to(tl.uint32), index, fractions, SIGNED, BLOCK)
        _store(pointer, lanes, count, code, seed, index, False, MASKED)
        runs = start // _RUN + tl.arange(0, BLOCK // _RUN)
        _store(scales, runs, count // _RUN, scale, seed, index, False, MASKED)


@triton.jit
def encode(x, seed, index, fractions, SIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """The codes of float32 ``x``, and the scales of its runs: :func:`thalweg.kernels.eightbit.write`."""
    values, per_step, below = fractions
    # As integers, magnitudes are in the order of the numbers, and a NaN is the largest; the last bit prefers no sign.
    bits = x.to(tl.uint32, bitcast=True)
    largest = tl.max(((bits << 1) | ((bits >> 31) ^ 1)).reshape(BLOCK // _RUN, _RUN), 1)
    scale = ((largest >> 1) | ((largest ^ 1) << 31)).to(tl.float32, bitcast=True)
    divisor = tl.where(scale == 0, 1.0, scale)[:, None].broadcast_to(BLOCK // _RUN, _RUN).reshape(BLOCK)
    y = tl.div_rn(x, divisor)
    code = tl.load(below + ((y.to(tl.int32, bitcast=True) >> 16) + 0x8000))
    code = tl.minimum(code + (y >= tl.load(values + (code + 1))).to(tl.int32), 254)
    steps = (y - tl.load(values + code)) * tl.load(per_step + code)
    up = (_noise(seed, index) + _MARGIN).to(tl.float32) < steps
    if not SIGNED:
        up |= (code == 0) & (y > 0)
    return (code + up.to(tl.int32)).to(tl.uint8), scale


@triton.jit
def _pointer(address, offset, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)) + offset, ALIGNMENT)


@triton.jit
def _scales(column, place):
    return tl.load(column).to(tl.pointer_type(tl.float32)) + place // _RUN


@triton.jit
def _lerp(start, end, weight):
    """Like torch.lerp, exact at both ends."""
    gap = end - start
    return tl.where(weight < 0.5, start + weight * gap, end - (1 - weight) * gap)


@triton.jit
def _divide(x, y):
    return tl.div_rn(x, y) if x.dtype == tl.float32 else x / y  # float64 is exact as it is


@triton.jit
def _sqrt(x):
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def _squares(x, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Sums of GROUP squares, in float64: the squares of 1e25 and of 1e-25 are beyond float32."""
    x = x.to(tl.float64)
    return tl.sum((x * x).reshape(BLOCK // GROUP, GROUP), 1)


@triton.jit
def _block(
    at,
    seeds,
    scalars,
    start,
    count,
    DTYPE: tl.constexpr,
    EXPLORE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    MEASURE: tl.constexpr,
    FRESH: tl.constexpr,
    KEEP: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The squares of θ and of r in one block, moved by its step size if not to be measured: see :func:`sweep`."""
    param, grad, exp_avg, exp_avg_sq, explore_ema = at  # of state: codes or numbers, scales, tables
    seed, index = seeds
    factor, gain, weight1, weight2, weight3, correction2, correction3, eps, weight_decay, rate, remaining = scalars
    lanes = start + tl.arange(0, BLOCK)
    index += lanes.to(tl.uint32)
    evict: tl.constexpr = "" if MEASURE else "evict_first"  # the second pass is the last to read
    theta = _load(param, lanes, count, DTYPE, MASKED, evict)
    m = _load_state(exp_avg, start, count, DTYPE, MASKED, evict, BLOCK)
    v = _load_state(exp_avg_sq, start, count, DTYPE, MASKED, evict, BLOCK)
    if FRESH:
        h = factor * _load(grad, lanes, count, DTYPE, MASKED, "evict_first")
        if EXPLORE:
            g = h
            b = _load_state(explore_ema, start, count, DTYPE, MASKED, "evict_first", BLOCK)
            h = _lerp(g, b, -gain)
            if KEEP:
                b = _lerp(b, g, weight1)
                _store_state(explore_ema, start, count, b, seed + 3, index, True, MASKED, BLOCK)
        m = _lerp(m, h, weight2)
        v = _lerp(v, h * h, weight3)
        if KEEP:
            _store_state(exp_avg, start, count, m, seed + 1, index, True, MASKED, BLOCK)
            _store_state(exp_avg_sq, start, count, v, seed + 2, index, False, MASKED, BLOCK)
    r = _divide(_divide(m, correction2), _sqrt(_divide(v, correction3)) + eps) + weight_decay * theta
    if not MEASURE:
        _store(param, lanes, count, remaining * theta - rate * r, seed, index, STOCHASTIC, MASKED)
    return _squares(theta, BLOCK, GROUP), _squares(r, BLOCK, GROUP)


@triton.jit
def _remaining(decay, lr, lr_tensor):
    """1 - ηλ, by which θ is multiplied where decay is decoupled; ``decay`` is λ there, else 0."""
    rate = tl.full([], lr, tl.float64)
    if lr_tensor is not None:
        rate = tl.load(lr_tensor).to(tl.float64)
    return 1.0 - rate * decay


@triton.jit(do_not_specialize=["seed"])
def sweep(
    table,
    work,
    partials,
    rates,
    proceed,
    grad_scale,
    signed,
    unsigned,
    lr: tl.float64,
    step: tl.float64,
    seed: tl.int64,
    sign: tl.float64,
    gain: tl.float64,
    weight1: tl.float64,
    weight2: tl.float64,
    weight3: tl.float64,
    log_beta2: tl.float64,
    log_beta3: tl.float64,
    eps: tl.float64,
    weight_decay: tl.float64,
    decay: tl.float64,
    decay_lr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    EXP_AVG: tl.constexpr,
    EXP_AVG_SQ: tl.constexpr,
    EXPLORE_EMA: tl.constexpr,
    DTYPE: tl.constexpr,
    EXPLORE: tl.constexpr,
    COUNTED: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    MEASURE: tl.constexpr,
    ADAPT: tl.constexpr,
    FRESH: tl.constexpr,
    KEEP: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of a layer: MEASURE it (the sums of θ² and r², to ``partials``), or move it.

    The step size is ``lr``, or in ``rates``: one for each layer if ADAPT, else one for all. FRESH: the state is that of
    the last step and has to be moved as well; KEEP: and to be written back. COUNTED: the table points at the step.
    ``proceed`` at 0 changes nothing. ``signed`` and ``unsigned`` are the tables of state in 8 bits, if any is.
    """
    if proceed is not None:  # noqa: SIM102
        if tl.load(proceed) == 0:
            return
    program = tl.program_id(0)
    if not MEASURE:  # backwards: what was measured last is still in the cache
        program = tl.num_programs(0) - 1 - program
    layer = tl.load(work + program)
    line = table + layer * _COLUMNS
    offset = (program - tl.load(line + 13)) * CHUNK
    count = tl.minimum(tl.load(line + 12) - offset, CHUNK).to(tl.int32)
    place = tl.load(line + 11) + offset
    at = (
        _pointer(tl.load(line), offset, PARAM, ALIGNMENT),
        _pointer(tl.load(line + 1), offset, GRAD, ALIGNMENT),
        (_pointer(tl.load(line + 2), offset, EXP_AVG, ALIGNMENT), _scales(line + 5, place), signed),
        (_pointer(tl.load(line + 3), offset, EXP_AVG_SQ, ALIGNMENT), _scales(line + 6, place), unsigned),
        (_pointer(tl.load(line + 4), offset, EXPLORE_EMA, ALIGNMENT), _scales(line + 7, place), signed),
    )
    seeds = ((seed + tl.load(line + 9)).to(tl.uint32), (tl.load(line + 10) + place).to(tl.uint32))

    if COUNTED:
        k = tl.load(tl.load(line + 8).to(tl.pointer_type(tl.float32))).to(tl.float64)
    else:
        k = step + tl.load(line + 8).to(tl.float64)
    factor = tl.full([], sign, DTYPE)
    if grad_scale is not None:
        factor *= tl.load(grad_scale).to(DTYPE)
    rate = tl.full([], lr, DTYPE)
    if rates is not None:
        rate = tl.load(rates + (layer if ADAPT else 0)).to(DTYPE)
    scalars = (
        factor,
        tl.full([], gain, DTYPE),
        tl.full([], weight1, DTYPE),
        tl.full([], weight2, DTYPE),
        tl.full([], weight3, DTYPE),
        (1 - tl.exp2(k * log_beta2)).to(DTYPE),
        (1 - tl.exp2(k * log_beta3)).to(DTYPE),
        tl.full([], eps, DTYPE),
        tl.full([], weight_decay, DTYPE),
        rate,
        _remaining(decay, lr, decay_lr).to(DTYPE),
    )
    # Fewer sums take fewer registers; in float64 fewer than these would let ptxas trade some for the stack.
    GROUP: tl.constexpr = 2 if tl.float64 == DTYPE else 4
    theta_squares = tl.zeros([BLOCK // GROUP], tl.float64)
    r_squares = tl.zeros([BLOCK // GROUP], tl.float64)
    full = count // BLOCK * BLOCK
    for start in range(0, full, BLOCK):
        theta_square, r_square = _block(
            at, seeds, scalars, start, count, DTYPE, EXPLORE, STOCHASTIC, MEASURE, FRESH, KEEP, False, BLOCK, GROUP
        )
        theta_squares += theta_square
        r_squares += r_square
    if full < count:
        theta_square, r_square = _block(
            at, seeds, scalars, full, count, DTYPE, EXPLORE, STOCHASTIC, MEASURE, FRESH, KEEP, True, BLOCK, GROUP
        )
        theta_squares += theta_square
        r_squares += r_square
    if MEASURE:
        tl.store(partials + 2 * program, tl.sum(theta_squares, 0))
        tl.store(partials + 2 * program + 1, tl.sum(r_squares, 0))


@triton.jit
def _total(table, layer, partials, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """The sums of a layer's chunks, in a fixed order."""
    line = table + layer * _COLUMNS
    chunks = tl.cdiv(tl.load(line + 12), CHUNK)
    partials += 2 * tl.load(line + 13)
    theta_squares = tl.zeros([BLOCK], tl.float64)
    r_squares = tl.zeros([BLOCK], tl.float64)
    for start in range(0, chunks, BLOCK):
        lanes = start + tl.arange(0, BLOCK)
        theta_squares += tl.load(partials + 2 * lanes, mask=lanes < chunks, other=0.0)
        r_squares += tl.load(partials + 2 * lanes + 1, mask=lanes < chunks, other=0.0)
    return tl.sum(theta_squares, 0), tl.sum(r_squares, 0)


@triton.jit
def add_up(table, partials, sums, places, PARTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """One layer that is cut over ranks: its squares here, to where they are added up with those of other ranks."""
    layer = tl.program_id(0)
    theta, r = _total(table, layer, partials, CHUNK, BLOCK)
    place = sums + tl.load(places + layer) + PARTS // 2
    tl.store(place, theta)
    tl.store(place + PARTS, r)


@triton.jit
def _read(place, PARTS: tl.constexpr):
    """A sum of squares, as :func:`thalweg.kernels.norms.squares` says."""
    total = tl.load(place + PARTS // 2)
    if PARTS == 3:
        total += tl.load(place) * 2.0**-550 * 2.0**-550
        total += tl.load(place + 2) * 2.0**550 * 2.0**550
    return total


@triton.jit
def adapt(
    table,
    partials,
    sums,
    places,
    rates,
    lr_tensor,
    lr: tl.float64,
    low: tl.float64,
    high: tl.float64,
    trust_eps: tl.float64,
    least: tl.float64,
    most: tl.float64,
    decay: tl.float64,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One layer: its squares to η φ(‖θ‖) / (‖r‖ + ε2 φ(‖θ‖)); η where a norm is 0.

    They are the sums of its chunks, or, if it is cut over ranks, those of all ranks in ``sums``.
    """
    layer = tl.program_id(0)
    if sums is None:
        theta, r = _total(table, layer, partials, CHUNK, BLOCK)
    else:
        place = sums + tl.load(places + layer)
        theta, r = _read(place, PARTS), _read(place + PARTS, PARTS)
    phi = tl.sqrt(theta) * tl.abs(_remaining(decay, lr, lr_tensor))
    r_norm = tl.sqrt(r)
    phi = tl.where(phi < low, low, phi)  # unlike minimum and maximum, a NaN stays one
    phi = tl.where(phi > high, high, phi)
    rate = tl.full([], lr, tl.float64)
    if lr_tensor is not None:
        rate = tl.load(lr_tensor).to(tl.float64)
    moving = (phi > 0) & (r_norm > 0)
    ratio = phi / (r_norm + trust_eps * phi)
    ratio = tl.where(ratio < least, least, ratio)
    ratio = tl.where(ratio > most, most, ratio)
    tl.store(rates + layer, rate * tl.where(moving, ratio, 1.0))
