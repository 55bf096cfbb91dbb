"""Print constraints.txt: the exact version of every package that thesis_ad and its extras need, as installed here."""
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = """\
# Exact versions of every package that thesis_ad and its extras need, so that the same inputs give the same bytes.
# Written by `make freeze` from the installed environment; ranges live in pyproject.toml.
# CUDA packages are left out: torch pins them itself, and other platforms have none."""
BY_TORCH = ("nvidia-", "cuda-", "triton")


def installed(requirements):
    "Versions of the installed packages that `requirements` need, directly or not, by canonical name."
    versions, seen, queue = {}, set(), [(Requirement(text), "") for text in requirements]
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}): continue
        if (name, key := tuple(sorted(requirement.extras))) in seen or name.startswith(BY_TORCH): continue
        seen.add((name, key))
        try: found = distribution(name)
        except PackageNotFoundError: continue
        versions[name] = found.version.split("+")[0]
        queue += [(Requirement(text), extra) for text in found.requires or () for extra in ("", *requirement.extras)]
    return versions


def project_requirements(root):
    "All requirements of pyproject.toml, extras included."
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + sum(project["optional-dependencies"].values(), [])


if __name__ == "__main__":
    print(HEADER)
    for name, version in sorted(installed(project_requirements(Path(__file__).parents[1])).items()):
        print(f"{name}=={version}")
