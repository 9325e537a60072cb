"""The tutorials run as they stand, without the tools that build the site, and every page is found from the site's index."""

import re
import runpy
import shlex
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

from lae_fast import __main__ as commands
from lae_fast.models import Architecture, build

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TUTORIALS = sorted(DOCS.glob("tutorials/*.md"))


CELL = re.compile(r"```{code-cell} ipython3\n(.*?)```", flags=re.DOTALL)


def found_in(page):
    """The code of a tutorial, cell by cell."""
    return CELL.findall(page.read_text())


def cells(page):
    """The same, compiled: each cell with its place for error messages. A cell that is a file, `%%writefile NAME`, is written."""
    text = page.read_text()
    for found in CELL.finditer(text):
        magic, _, rest = found[1].partition("\n")
        if magic.startswith("%%writefile "):
            Path(magic.removeprefix("%%writefile ")).write_text(rest)
            continue
        yield compile("\n" * text[: found.start(1)].count("\n") + found[1], str(page), "exec")


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
@pytest.mark.slow
def test_a_tutorial_runs(page, tmp_path, monkeypatch):
    if page.stem == "lightning":
        pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mpl.use("Agg")
    torch.manual_seed(0)
    names = {"__name__": "__main__"}
    for code in cells(page):
        exec(code, names)  # it is our own text, and its asserts say what is right
    plt.close("all")


def test_five_commands_lead_from_pictures_to_a_page(tmp_path, monkeypatch):
    """Those of the tutorial as they stand, with fewer pictures and one epoch; not those that install and open a browser."""
    page = DOCS / "tutorials" / "own_images.md"
    (shell,) = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = shell.replace("\\\n", "").splitlines()
    venv, install, draw, train, look = (shlex.split(line, comments=True) for line in lines)
    assert (venv[:3], install) == (["python", "-m", "venv"], ["pip", "install", "."])
    assert (draw, look[0], train[:2]) == (["python", "draw.py"], "xdg-open", ["lae-fast", "train"])
    monkeypatch.chdir(tmp_path)
    Path("draw.py").write_text(found_in(page)[0].replace("n = 400", "n = 40"))
    runpy.run_path("draw.py")
    assert commands.main([*train[1:], "--device", "cpu", "--epochs", "1"]) == 0
    assert "data:image/png" in Path(look[1]).read_text(encoding="utf-8")


def test_a_network_of_one_s_own_takes_twenty_lines():
    (code,) = (c for c in found_in(DOCS / "tutorials" / "own_images.md") if "view.write" in c)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def pages_of(page):
    """The pages that the tables of contents on a page lead to, and on these, and so on."""
    for block in re.findall(r"```{toctree}\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for line in block.splitlines():
            target = re.sub(r".*<(.*)>", r"\1", line).strip()
            if target and not target.startswith(":"):
                found = (page.parent / f"{target}.md").resolve()
                assert found.exists(), f"{page.name} leads to {target}, which is not there"
                yield found
                yield from pages_of(found)


def test_every_page_is_in_a_table_of_contents():
    expected = {
        *DOCS.rglob("*.md"),
        *ROOT.glob("results/**/*.md"),
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
    }
    assert set(pages_of(DOCS / "index.md")) == expected - {DOCS / "index.md"}


@pytest.mark.parametrize(
    ("row", "model", "options"),
    [
        ("`LAE`, datapoint decisions", "lae", {}),
        ("the same with `spread=False`", "lae", {"spread": False}),
        ("`LAE`, joint decisions", "lae", {"decisions": "joint"}),
        ("`Hoffman`", "hoffman", {}),
    ],
)
def test_the_first_step_sizes_are_those_of_the_page(row, model, options):
    section = (DOCS / "mathematics.md").read_text().partition("This package starts from")[2]
    (line,) = re.findall(rf"^\| {re.escape(row)}.*$", section, flags=re.MULTILINE)
    printed = [float(cell.split(",")[0]) for cell in line.strip("| ").split(" | ")[1:]]
    small = Architecture(model=model, nx=4, nz=2, nh=4, depth=1)
    built = [build(small, mh=mh, **options).log_step_size.exp().item() for mh in (True, False)]
    assert built == pytest.approx(printed)
