"""Published checkpoints on this machine: where the hub's cache keeps them, what a diffusers pipeline folder must hold, what is missing.

Never fetches anything: tens of gigabytes, often behind a licence to accept, are fetched once and on purpose. An error names
the files and the command. Torch-free and quick, because the driver asks before any work starts.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

PIPELINE_FILE = "model_index.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "transformer_2": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""Components with weights, and the stem of their files."""
SETTINGS = {"tokenizer": "tokenizer.json", "scheduler": "scheduler_config.json"}
"""Components without, and the one file each cannot do without."""

SAMPLED_BYTES = 64 << 20
"""Files above this size are identified by samples."""
SAMPLE_BYTES = 4096


def find_folder(name_or_path: str | Path) -> Path:
    """A folder, or the folder of a hub id in the local cache.

    Raises:
        ValueError: if it is neither.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if HUB_ID.fullmatch(str(name_or_path)):
        return hub_folder(str(name_or_path))
    raise ValueError(f"checkpoint is {str(name_or_path)!r}; needs a folder or a hub id (owner/name)")


def hub_folder(repository: str) -> Path:
    """The newest snapshot of a hub repository in the local cache.

    Raises:
        ValueError: if there is none; it says what to fetch and where to put it.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, PIPELINE_FILE)
    if not isinstance(found, str):
        raise ValueError(f"{repository} is not on this machine. {how_to_fetch(repository)}")
    return Path(found).parent


def how_to_fetch(repository: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = ", ".join(f"{name}/" for name in (*WEIGHTS, *SETTINGS) if name != "transformer_2")
    return (
        f"It needs {PIPELINE_FILE}, {folders} (transformer_2/ where there is one). With a route to the hub, and its licence accepted "
        f"there if it has one: `hf download {repository}`, which fills {HF_HUB_CACHE} (HF_HOME moves it); or fetch it "
        f"elsewhere with `--local-dir FOLDER`, bring the folder here, and give --preset FOLDER"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if it is not there or is none.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds a {type(document).__name__}; needs an object")
    return document


def pipeline_components(folder: Path, *, repository: str | None = None) -> dict[str, Path]:
    """Folders of a pipeline's components by name, every one of them whole.

    Raises:
        ValueError: naming the files that are missing.
    """
    index = read_json(folder / PIPELINE_FILE)
    wanted = [name for name in (*WEIGHTS, *SETTINGS) if name != "transformer_2" or (index.get(name) or [None])[0]]
    missing = [file for name in wanted for file in missing_files(folder / name, name)]
    if missing:
        shown = ", ".join(str(file.relative_to(folder)) for file in missing[:6])
        more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        where = f". {how_to_fetch(repository)}" if repository else ""
        raise ValueError(f"pipeline folder {folder} lacks {shown}{more}{where}")
    return {name: folder / name for name in wanted}


def missing_files(folder: Path, component: str) -> list[Path]:
    if component in SETTINGS:
        return [path for path in (folder / SETTINGS[component],) if not path.exists()]
    return [path for path in (folder / "config.json", *weight_files(folder, WEIGHTS[component])) if not path.exists()]


def weight_files(folder: Path, stem: str = "diffusion_pytorch_model") -> list[Path]:
    """The safetensors files of a component, whether or not they are there: those its index names, or the one."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return [folder / f"{stem}.safetensors"]
    return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]


def revision(files: Mapping[str, Path], *, base: str = "") -> str:
    """First 16 hex digits of a sha256 over names and contents, and over the revision of what they stand on."""
    digest = hashlib.sha256(base.encode())
    for name in sorted(files):
        stat = files[name].stat()
        digest.update(f"{name}\0".encode())
        digest.update(file_digest(files[name], stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=4096)
def file_digest(path: Path, num_bytes: int, mtime_ns: int) -> bytes:
    """sha256 of a file; of a large safetensors file, of its header and the first, middle and last 4 KiB of every tensor.

    Finetuning moves nearly every number of the tensors it trains, so samples of each tell apart what sizes and names
    cannot; 20 GB take a fraction of a second instead of a minute. Read once per process while the file stays the same.
    """
    with path.open("rb") as file:
        if num_bytes <= SAMPLED_BYTES or path.suffix != ".safetensors":
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256(str(num_bytes).encode())
        header_bytes = int.from_bytes(file.read(8), "little")
        header = file.read(header_bytes)
        digest.update(header)
        for start, end in sorted(tensor_spans(header)):
            middle = (start + end) // 2
            for place in (start, middle, max(start, end - SAMPLE_BYTES)):
                file.seek(8 + header_bytes + place)
                digest.update(file.read(min(SAMPLE_BYTES, end - place)))
    return digest.digest()


def tensor_spans(header: bytes) -> Iterable[tuple[int, int]]:
    return [tuple(entry["data_offsets"]) for name, entry in json.loads(header).items() if name != "__metadata__"]
