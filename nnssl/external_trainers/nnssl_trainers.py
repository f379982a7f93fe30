"""Forwards nnU-Net's search for a trainer to nnSSL. `nnssl_register` copies this file to nnU-Net.

nnU-Net imports every module of its trainer folder and asks each for every name. So this one imports
nothing when it is loaded, answers stock names at once, and knows no trainer when nnSSL is gone. A
name that is neither stock's nor ours may be a misspelt one of ours: should nobody know it, nnSSL
says what it is near to.
"""


def __getattr__(name: str) -> type:
    ours, unknown = name.startswith("nnSSL"), f"module {__name__!r} has no attribute {name!r}"
    if not ours and name.startswith(("nnUNet", "_")):
        raise AttributeError(unknown)
    try:
        from nnssl.training.factory import trainer_class

        return trainer_class(name)
    except ModuleNotFoundError as error:
        if ours and error.name != "nnssl":
            raise
        hint = f"{name!r} needs the package nnssl: pip install nnssl, or nnssl_register --undo"
        raise AttributeError(hint if ours else unknown) from None
    except Exception:
        if ours:
            raise
        raise AttributeError(unknown) from None
