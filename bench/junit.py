"""`python bench/junit.py tests.xml` sums a test run up. Files that could not be imported for want of a package count as left
out, not as failed. Exit code 1: something failed, or nothing ran."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from packages import OTHERS


class Verdict(NamedTuple):
    passed: int
    skipped: int
    left_out: dict[str, str]  # file: the package it lacks
    failed: list[str]

    @property
    def is_good(self) -> bool:
        return self.passed > 0 and not self.failed


def verdict(xml: str) -> Verdict:
    passed, skipped, left_out, failed = 0, 0, {}, []
    for case in ElementTree.fromstring(xml).iter("testcase"):
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        troubles = [*case.iter("error"), *case.iter("failure")]
        said = " ".join(f"{t.get('message')} {t.text}" for t in troubles)
        lacks = re.findall(r"ModuleNotFoundError: No module named '([\w.]+)'", said)
        package = lacks[-1].split(".")[0] if lacks else None
        if troubles and "collection failure" in said and package in OTHERS:
            left_out[name] = package
        elif troubles:
            failed.append(name)
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return Verdict(passed, skipped, left_out, failed)


def main() -> int:
    path = Path(sys.argv[1])
    if not path.exists():
        print(f"{path.name} was not written: the tests did not come to an end")
        return 1
    found = verdict(path.read_text())
    for name, package in found.left_out.items():
        print(f"left out: {name}, for want of {package}")
    for name in found.failed:
        print(f"failed: {name}")
    print(
        f"{found.passed} passed, {len(found.failed)} failed, {found.skipped} skipped, {len(found.left_out)} files left out"
    )
    return 0 if found.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
