"""Records as ArviZ data."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from pyro_memory.diagnostics.bound import BoundEstimate
from pyro_memory.diagnostics.contribution import MemoryContribution
from pyro_memory.diagnostics.information import InformationGain
from pyro_memory.gate import checked

Groups = dict[str, dict[str, tuple[tuple[str, ...], Any]]]


@checked
def to_arviz(record: BoundEstimate | InformationGain | MemoryContribution) -> Any:
    """Turns a record into ArviZ data, for its tables, plots and files (netCDF, zarr).

    Groups and their variables, in nats but for the effective sample sizes: ``bound`` (``bound`` and
    ``effective_particles`` by datum; for a contribution also by memory), ``information`` (``kl_SITE`` by cell),
    ``address_SITE`` (``usage``, ``dead`` by slot). Values are by datum, not summaries.

    Returns:
        An ``arviz.InferenceData``, or from ArviZ 1.0 on the ``xarray.DataTree`` that took its place.

    Raises:
        ImportError: without the extra ``arviz``.

    References: ArviZ a unified library for exploratory analysis of Bayesian models in Python (Kumar et al., 2019),
    https://doi.org/10.21105/joss.01143
    """
    try:
        import arviz
        import xarray
    except ImportError as error:
        raise ImportError('`to_arviz` needs ArviZ: pip install "pyro-memory[arviz]"') from error
    datasets = {group: xarray.Dataset(variables) for group, variables in _groups(record).items()}
    if isinstance(record, MemoryContribution):
        names = ["given", *record.alternatives]
        datasets["bound"] = datasets["bound"].assign_coords(memory=names)
    if "InferenceData" in vars(arviz):
        return arviz.InferenceData(**datasets)
    return xarray.DataTree.from_dict(datasets)


def _groups(record: BoundEstimate | InformationGain | MemoryContribution) -> Groups:
    if isinstance(record, BoundEstimate):
        return {
            "bound": {name: (("datum",), _array(getattr(record, name))) for name in ("bound", "effective_particles")}
        }
    if isinstance(record, MemoryContribution):
        estimates = [record.given, *record.alternatives.values()]
        stacked = {
            name: np.stack([_array(getattr(e, name)) for e in estimates]) for name in ("bound", "effective_particles")
        }
        return {"bound": {name: (("memory", "datum"), values) for name, values in stacked.items()}}
    sites = {n: s for n, s in [*record.sites.items(), ("joint", record.joint)] if s.kl is not None}
    dims = {n: "datum" if s.unit == "datum" else f"cell_of_{n}" for n, s in sites.items()}
    groups: Groups = {"information": {f"kl_{n}": ((dims[n],), _array(s.kl)) for n, s in sites.items()}}
    for name, address in record.addresses.items():
        if address.usage is not None:
            groups[f"address_{name}"] = {
                "usage": (("slot",), _array(address.usage)),
                "dead": (("slot",), _array(address.dead)),
            }
    return groups


def _array(values: Tensor) -> np.ndarray:
    return values.numpy(force=True)
