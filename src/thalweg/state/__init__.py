"""State: trackable objects, variables, rows of gradients, names, placement.

The lowest room but for errors and settings. It knows no optimizer, no rule and no
strategy.
"""

from thalweg.state.checkpointable import OwnerFace, SlotOwner
from thalweg.state.indexed_slices import (
    IndexedSlices,
    as_gradient,
    convert_to_tensor,
)
from thalweg.state.names import (
    canonical_name,
    given_name,
    name_of,
    register_name,
    register_names,
    set_name,
)
from thalweg.state.placement import (
    Placement,
    colocate_with,
    current_placement,
    place,
)
from thalweg.state.trackable import (
    NoDependency,
    Trackable,
    VariableList,
    aliases,
    named_variables,
    walk,
)
from thalweg.state.variable import (
    Constraint,
    Variable,
    as_variable,
    constrained,
    creation_index,
    handle_of,
    has_constraints,
)
from thalweg.state.weak_table import WeakTable

__all__ = [
    "Constraint",
    "IndexedSlices",
    "NoDependency",
    "Placement",
    "OwnerFace",
    "SlotOwner",
    "Trackable",
    "Variable",
    "VariableList",
    "WeakTable",
    "aliases",
    "as_gradient",
    "as_variable",
    "canonical_name",
    "colocate_with",
    "convert_to_tensor",
    "creation_index",
    "current_placement",
    "given_name",
    "handle_of",
    "constrained",
    "has_constraints",
    "name_of",
    "named_variables",
    "place",
    "register_name",
    "register_names",
    "set_name",
    "walk",
]
