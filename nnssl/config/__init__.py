"""A YAML file is a trainer: finds, merges, checks and freezes configurations."""

from nnssl.config.aliases import rename_knobs
from nnssl.config.config import Config, bind, complete
from nnssl.config.files import CONFIG_FOLDERS, TRAINER_PREFIX, RawConfig, find_configs, read_config
from nnssl.config.overrides import OVERRIDES, write_overrides
from nnssl.config.schema import Groups, Schema

__all__ = [
    "CONFIG_FOLDERS",
    "OVERRIDES",
    "TRAINER_PREFIX",
    "Config",
    "Groups",
    "RawConfig",
    "Schema",
    "bind",
    "complete",
    "find_configs",
    "read_config",
    "rename_knobs",
    "write_overrides",
]
