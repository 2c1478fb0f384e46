"""What pyproject.toml puts into the wheel: every package, and the files that are no code."""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
# Where the packages are in a checkout.
FOLDERS = {name: SETUPTOOLS["package-dir"].get(name, name.replace(".", "/")) for name in SETUPTOOLS["packages"]}
for name, folder in SETUPTOOLS["package-dir"].items():
    below = {
        other: other.replace(name, folder, 1).replace(".", "/") for other in FOLDERS if other.startswith(f"{name}.")
    }
    FOLDERS |= below


def test_every_file_of_the_packages_is_in_the_wheel():
    tops = {folder.split("/")[0] for folder in FOLDERS.values()}
    files = [path.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    assert len(files) > 200
    packages = {pathlib.PurePosixPath(folder): name for name, folder in FOLDERS.items()}
    for path in files:
        if path.suffix == ".py":
            assert path.parent in packages, f"{path}: its folder is not among the packages"
            continue
        package = next(parent for parent in path.parents if parent in packages)
        globs = SETUPTOOLS["package-data"].get(packages[package], [])
        assert any(path.relative_to(package).match(glob) for glob in globs), f"{path}: package-data does not take it"
