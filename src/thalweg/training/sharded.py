"""The lasting parameters of modules under FSDP2.

Between a forward pass and the end of its backward pass a root module shows gathered
parameters, which are gone afterwards. Who lists variables in between, as a training
step does, is given the sharded ones that an optimizer has to update.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn


def lasting_parameters(
    parameters: Iterable[nn.Parameter], roots: Iterable[nn.Module]
) -> Iterable[nn.Parameter]:
    """Replace gathered parameters by the sharded ones they stand for.

    Args:
        parameters: What the modules show.
        roots: Where sharded modules are looked for.

    Returns:
        The parameters themselves where nothing is sharded.
    """
    # Nobody has sharded a module by a package that has not been imported.
    package = sys.modules.get("torch.distributed.fsdp")
    if package is None:
        return parameters
    sharded: dict[int, nn.Parameter] = {}
    for root in roots:
        for module in root.modules():
            if isinstance(module, package.FSDPModule):
                sharded.update(_pairs(module))
    return [sharded.get(id(one), one) for one in parameters]


def _pairs(module: Any) -> list[tuple[int, nn.Parameter]]:
    """Identities of gathered parameters, and the sharded ones behind them.

    torch has no public way from one to the other that leaves both as they are, so this
    reads private fields of FSDP2, and does without them where they are gone.
    """
    try:
        entries = [
            entry
            for group in module._get_fsdp_state()._fsdp_param_groups
            for entry in group.fsdp_params
        ]
        gathered = [getattr(entry, "_unsharded_param", None) for entry in entries]
        lasting = [entry.sharded_param for entry in entries]
    except AttributeError:
        return _pairs_by_resharding(module)
    pairs = zip(gathered, lasting, strict=True)
    return [(id(one), other) for one, other in pairs if one is not None]


def _pairs_by_resharding(module: Any) -> list[tuple[int, nn.Parameter]]:
    """The same by public functions; the backward pass has to gather once more."""
    before = dict(module.named_parameters(remove_duplicate=False))
    module.reshard()
    after = dict(module.named_parameters(remove_duplicate=False))
    return [(id(before[name]), after[name]) for name in before]
