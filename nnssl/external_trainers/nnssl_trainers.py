"""Forwards nnU-Net's search for a trainer to nnSSL. `nnssl_register` copies this file to nnU-Net.

nnU-Net imports every module of its trainer folder and asks each for every name. So this one imports
nothing when it is loaded, answers foreign names at once, and knows no trainer when nnSSL is gone.
"""


def __getattr__(name: str) -> type:
    if not name.startswith("nnSSL"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from nnssl.training.factory import trainer_class
    except ModuleNotFoundError as error:
        if error.name != "nnssl":
            raise
        message = f"{name!r} needs the package nnssl: pip install nnssl, or nnssl_register --undo"
        raise AttributeError(message) from None
    return trainer_class(name)
