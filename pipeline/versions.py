"""Which versions made a result: written into every record and run."""

import platform
from importlib.metadata import PackageNotFoundError, version

RECORDED_PACKAGES = ("memory-v2v", "torch", "diffusers", "ray", "av", "open_clip_torch", "faiss-cpu", "pyarrow")


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
