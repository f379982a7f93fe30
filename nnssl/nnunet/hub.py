"""Weights of a model hub: `hf://owner/name`, fetched and kept by `huggingface_hub`."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path, PurePosixPath

from nnssl.nnunet.paths import ADAPTATION_PLAN_FILE

PREFIX = "hf://"
_SOURCE = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>.+))?"
)
FILES = ("model.safetensors", "checkpoint_final.pth")  # where a source names none


def fetch(source: str) -> Path:
    """The local copy of `hf://owner/name`, `hf://owner/name@revision` or `hf://owner/name/file`.

    Raises:
        ValueError: it is no such name, or huggingface_hub is not installed.
        FileNotFoundError: the hub has no such repository or file, or cannot be reached.
    """
    found = _SOURCE.fullmatch(source)
    if found is None:
        raise ValueError(f"found {source!r}; allowed: hf://owner/name[@revision][/file]")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
        from huggingface_hub.errors import LocalEntryNotFoundError as Unreachable
    except ImportError:
        raise ValueError(f"{source} needs huggingface_hub: pip install 'nnssl[hub]'") from None
    names = [found["file"]] if found["file"] else FILES
    for name in names:
        try:
            file = Path(hf_hub_download(found["repository"], name, revision=found["revision"]))
            if file.suffix != ".safetensors":
                beside = str(PurePosixPath(name).with_name(ADAPTATION_PLAN_FILE))
                with suppress(HfHubHTTPError, OSError):  # few have one; none in the cache
                    hf_hub_download(found["repository"], beside, revision=found["revision"])
            return file
        except Unreachable as error:
            raise FileNotFoundError(
                f"{source} cannot be reached, and no copy of {name} is in the cache. Connect once, "
                "or copy the file here and name its path"
            ) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise FileNotFoundError(f"{source} cannot be fetched: {error}") from error
    raise FileNotFoundError(f"{source} has no {' or '.join(names)}; name a file: {source}/FILE")
