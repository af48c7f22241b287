"use strict";
for (const section of document.querySelectorAll(".results")) {
  const buttons = [...section.querySelectorAll(".legend button")];
  const shown = (button) => button.getAttribute("aria-pressed") === "true";
  const show = (chosen) => {
    for (const button of buttons) {
      button.setAttribute("aria-pressed", chosen.includes(button));
      for (const mark of section.querySelectorAll(`svg:not(.swatch) .${button.dataset.css}`)) {
        mark.style.display = chosen.includes(button) ? "" : "none";
      }
    }
  };
  for (const button of buttons) {
    let alone = false;
    button.addEventListener("click", (event) => {
      // A double click arrives as two single ones first, which cancel out.
      if (event.detail < 2) alone = shown(button) && buttons.filter(shown).length === 1;
      show(buttons.filter((other) => shown(other) !== (other === button)));
    });
    button.addEventListener("dblclick", () => show(alone ? buttons : [button]));
  }
}

for (const card of document.querySelectorAll(".card")) {
  const buttons = [...card.querySelectorAll(".views button")];
  const views = [...card.querySelectorAll(".view")];
  buttons.forEach((button, i) => button.addEventListener("click", () => {
    buttons.forEach((other, k) => other.setAttribute("aria-pressed", k === i));
    views.forEach((view, k) => view.classList.toggle("shut", k !== i));
  }));
}

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].querySelectorAll("[aria-sort]")];
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = (row) => row.cells[head.cellIndex].dataset.value ?? "";
      const compare = "numeric" in head.dataset ? (a, b) => a - b : (a, b) => a.localeCompare(b);
      const order = (a, b) => (key(a) === "") - (key(b) === "") || sign * compare(key(a), key(b));
      body.append(...[...body.rows].sort(order));
    });
  }
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch {  // a page from disk may not: select it instead
      getSelection().selectAllChildren(code);
      button.textContent = "selected";
    }
  });
}
