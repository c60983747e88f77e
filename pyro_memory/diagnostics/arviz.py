"""Records as ArviZ data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_memory.diagnostics.bound import BoundEstimate
from pyro_memory.diagnostics.contribution import MemoryContribution
from pyro_memory.diagnostics.information import InformationGain
from pyro_memory.diagnostics.lookups import PosteriorAddress
from pyro_memory.gate import checked

Group = dict[str, Any]  # what ``xarray.Dataset`` takes
DRAWS = ("chain", "draw")


@checked
def to_arviz(record: BoundEstimate | InformationGain | MemoryContribution | PosteriorAddress) -> Any:
    """Turns a record into ArviZ data, for its tables, plots and files (netCDF, zarr).

    Data stand where ArviZ has draws, in one chain: its mean is the record's, its ``mcse_mean`` a standard error over
    data, its intervals are of the data and not of their mean. Groups and their variables, in nats but for counts:

    - ``bound``: ``bound`` and ``effective_particles``; of a contribution by ``memory``, and ``lost``, the paired
      differences, by ``alternative``; with global latents, ``bound`` is of the data set and ``bound_given_globals`` by
      datum, as contributions then are;
    - ``information``: ``kl_SITE`` and ``kl_joint`` by datum; those of other units, one draw a cell, in a group a unit,
      such as ``information_data_set``;
    - ``address_SITE``: ``usage`` and ``dead`` by ``slot``, which are no draws; of a posterior ``probability`` and
      ``se`` by ``value``, and ``entropy``, a draw a lookup.

    The attribute ``unit`` of a group says what one draw is, ``units`` of a variable what it is measured in.

    Returns:
        An ``arviz.InferenceData``, or from ArviZ 1.0 on the ``xarray.DataTree`` that took its place.

    Raises:
        ImportError: without the extra ``arviz``.

    References: ArviZ a unified library for exploratory analysis of Bayesian models in Python (Kumar et al., 2019),
    https://doi.org/10.21105/joss.01143

    Example::

        data = to_arviz(memory_contribution(model, guide, x, memory, alternatives={"other": other}))
        arviz.summary(data, group="bound", var_names=["lost"])
        arviz.plot_forest(data, group="bound")  # before ArviZ 1.0: plot_forest(data["bound"])
    """
    return as_arviz(_groups(record), "to_arviz")


def as_arviz(groups: Mapping[str, Group], asked_by: str) -> Any:
    """Makes ArviZ data of groups, empty ones left out."""
    try:
        import arviz
        import xarray
    except ImportError as error:
        raise ImportError(f'`{asked_by}` needs ArviZ: pip install "pyro-memory[arviz]"') from error
    datasets = {name: xarray.Dataset(**group) for name, group in groups.items() if group["data_vars"]}
    if "InferenceData" in vars(arviz):  # hasattr is true of some versions that have none
        return arviz.InferenceData(**datasets)
    return xarray.DataTree.from_dict(datasets)


def _groups(record: BoundEstimate | InformationGain | MemoryContribution | PosteriorAddress) -> dict[str, Group]:
    if isinstance(record, BoundEstimate):
        groups = {"bound": _bound(record.unit, record.bound, record.effective_particles)}
        given = record.given_globals
        return (
            groups
            if given is None
            else groups | {"bound_given_globals": _bound(given.unit, given.bound, given.effective_particles)}
        )
    if isinstance(record, MemoryContribution):
        return {"bound": _contribution(record)}
    if isinstance(record, PosteriorAddress):
        rows = {"probability": record.probs, "se": record.se, "entropy": record.entropy.unsqueeze(-1)}
        dims = {"probability": ("value",), "se": ("value",), "entropy": ()}
        measured = {"entropy": "nats/lookup"}
        columns = {
            name: (dims[name], values.reshape(-1) if not dims[name] else values.reshape(-1, values.shape[-1]),
                   measured.get(name, "probability"))
            for name, values in rows.items()
        }  # fmt: skip
        return {f"address_{record.site}": _by_unit("lookup", columns)}
    sites = {n: s for n, s in [*record.sites.items(), ("joint", record.joint)] if s.kl is not None}
    groups = {}
    for unit in dict.fromkeys(s.unit for s in sites.values()):
        kls = {f"kl_{n}": ((), s.kl, f"nats/{unit}") for n, s in sites.items() if s.unit == unit}
        groups["information" if unit == "datum" else f"information_{unit.replace(' ', '_')}"] = _by_unit(unit, kls)
    for name, address in record.addresses.items():
        if address.usage is not None:
            columns = {"usage": address.usage, "dead": address.dead}
            groups[f"address_{name}"] = {"data_vars": {k: (("slot",), v.numpy(force=True)) for k, v in columns.items()}}
    return groups


def _contribution(record: MemoryContribution) -> Group:
    estimates = {name: e.exchangeable for name, e in {"given": record.given, **record.alternatives}.items()}
    bound, effective = (
        torch.stack([getattr(e, name) for e in estimates.values()], -1) for name in ("bound", "effective_particles")
    )
    group = _bound(record.unit, bound, effective, "memory")
    group["coords"]["memory"] = list(estimates)
    if record.alternatives:
        lost = {"lost": (("alternative",), bound[:, :1] - bound[:, 1:], f"nats/{record.unit}")}
        group["data_vars"] |= _by_unit(record.unit, lost)["data_vars"]
        group["coords"]["alternative"] = list(record.alternatives)
    return group


def _bound(unit: str, bound: Tensor, effective_particles: Tensor, *dims: str) -> Group:
    columns = {
        "bound": (dims, bound, f"nats/{unit}"),
        "effective_particles": (dims, effective_particles, "particles"),
    }
    return _by_unit(unit, columns)


def _by_unit(unit: str, columns: Mapping[str, tuple[tuple[str, ...], Tensor, str]]) -> Group:
    """Columns of values that begin with a dimension of ``unit``, which become draws of one chain."""
    count = len(next(iter(columns.values()))[1])
    return {
        "data_vars": {
            name: ((*DRAWS, *dims), values.unsqueeze(0).numpy(force=True), {"units": measured_in})
            for name, (dims, values, measured_in) in columns.items()
        },
        "coords": {"chain": [0], "draw": range(count)},
        "attrs": {"unit": unit},
    }
