"""The site: built as strictly as Sphinx can, every public name on a page, and nothing on it from elsewhere."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

from launching import Piped

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MODULES = (
    "thalweg",
    "thalweg.jax",
    "thalweg.lab",
    "thalweg.lab.contenders",
    "thalweg.lab.engine",
    "thalweg.lab.tasks",
    "thalweg.landscape",
    "thalweg.theory",
)
FETCHED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href", "use": "href"}


def test_the_site_is_built_and_whole(tmp_path, subtests):
    """A dead link, a name that is on no page, a page in no table of contents: no site. Built once for all checks."""
    strictly = ["-W", "-n", "--keep-going", "-q", "-d", str(tmp_path / "read")]
    built = Piped(["-m", "sphinx", *strictly, str(DOCS), str(tmp_path / "html")], dict(os.environ))
    said, errors = built.communicate(600.0)
    assert built.returncode == 0, said + errors
    for check in (every_public_name_is_on_a_page, nothing_is_fetched_from_elsewhere, formulas_are_drawn_by_the_browser,
                  every_option_of_every_command_is_listed):  # fmt: skip
        with subtests.test(check.__name__.replace("_", " ")):
            check(tmp_path / "html")


class Page(HTMLParser):
    """What a browser fetches for a page by itself, the targets in it, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.targets: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag in FETCHED and found.get("rel") not in ("canonical", "index", "search", "next", "prev"):
            self.fetched.append(found.get(FETCHED[tag]) or "")
        if "id" in found:
            self.targets.add(found["id"])


def every_public_name_is_on_a_page(site):
    pages = [Page(path.read_text("utf-8")) for path in (site / "api").glob("*.html")]
    targets = set().union(*(page.targets for page in pages))
    public = {f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__}
    assert public - targets == set()


def nothing_is_fetched_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    foreign = [
        (str(path.relative_to(site)), address)
        for path in pages
        for address in Page(path.read_text("utf-8")).fetched
        if re.match(r"(https?:)?//", address)
    ]
    styles = [
        (path.name, found)
        for path in site.rglob("*.css")
        for found in re.findall(r"(?:@import|url\()[\"' (]*((?:https?:)?//[^\"')]*)", path.read_text("utf-8"))
    ]
    assert foreign + styles == []


def formulas_are_drawn_by_the_browser(site):
    assert "<mfrac>" in (site / "api" / "zeroth_order.html").read_text("utf-8")
    assert "<mtable" in (site / "api" / "inside.html").read_text("utf-8")
    for path in site.rglob("*.html"):
        if "_modules" not in path.parts and "generated" not in path.parts:
            words = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", path.read_text("utf-8"), flags=re.DOTALL)
            assert not re.search(r"\\(frac|sqrt|hat|qquad|begin)\b|\$\w+\$", words), path


def test_each_page_opens_with_the_question_it_answers():
    others = ("benchmarks", "bases", "changelog", "contributing")  # kept elsewhere, or generated
    pages = [path for path in DOCS.glob("*.md") if path.stem not in others]
    assert pages
    lacking = [path.name for path in pages if "?" not in "".join(path.read_text("utf-8").split("\n\n")[:2])]
    assert lacking == []


def every_option_of_every_command_is_listed(site):
    from thalweg.commands import main as cli

    listed = re.sub(r"<[^>]*>", "", (site / "commands.html").read_text("utf-8"))
    measuring = ("bench step", "bench memory", "bench sharded")
    commands = ("compare", "train", "reproduce", "report", "plan", *measuring, "theory")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for command in commands:
            with contextlib.suppress(SystemExit):  # argparse leaves when it has helped
                cli.main([*command.split(), "--help"])
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", said.getvalue())) - {"--help"}
    assert options > {"--optimizers", "--sharding", "--scale", "--shapes", "--sharpness"}
    assert [option for option in options if option not in listed] == []
