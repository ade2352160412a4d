"""Where training tasks come from: the sources by name, and how the tasks of one are loaded."""

from sandboxrl.data.sources.loading import (
    iter_source,
    load_source,
    load_sources,
    named_specs,
    origin_of,
    own_rewards,
    parse_spec,
    source_options,
)
from sandboxrl.data.sources.table import ORIGINS, SOURCES, describe_rejected

__all__ = [
    "ORIGINS",
    "SOURCES",
    "describe_rejected",
    "iter_source",
    "load_source",
    "load_sources",
    "named_specs",
    "origin_of",
    "own_rewards",
    "parse_spec",
    "source_options",
]
