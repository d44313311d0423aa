"""What the README says is true: its tree lists every module, its links resolve, its Python runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_tree_lists_every_module_and_nothing_else():
    (tree,) = re.findall(r"```text\n(unrolled/.*?)```", README, flags=re.DOTALL)
    listed, folder = set(), ""
    for line in tree.splitlines():
        name = line.split("  ")[0] if line[0] != " " else line.strip().split(" ")[0]
        if name.endswith("/"):
            folder = name
        elif name.endswith(".py"):
            listed.add(folder + name if line[0] == " " else name)
    present = {
        str(path.relative_to(ROOT)) for path in (ROOT / "unrolled").rglob("*.py") if path.name != "__init__.py"
    }
    assert listed == present


def test_links_inside_the_repository_resolve():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_the_python_runs(code):
    small = code.replace("crate_tiny_patch16_224", "crate_nano_patch4_32").replace("224, 224", "32, 32")
    exec(compile(small, "README.md", "exec"), {})
