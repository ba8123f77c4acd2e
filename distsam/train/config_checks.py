"""Keys that are right one by one and wrong together."""

from distsam.errors import InputError
from distsam.train.config import Config

METHODS = ("base", "sam", "das", "nbar", "obar")
RESCALINGS = ("das", "nbar", "obar")


def split_method(method: str) -> tuple[str, ...]:
    """The parts of `sam+das`, checked: known, each once, `base` alone, at most one of das, nbar and obar."""
    parts = tuple(part.strip() for part in method.split("+"))
    for part in parts:
        if part not in METHODS:
            known = ", ".join(METHODS)
            raise InputError(f"optim.method: {method!r} is unknown; must be one of {known}, or a sum such as sam+das")
    if len(set(parts)) < len(parts):
        raise InputError(f"optim.method: {method!r} names a part twice; name each once")
    if "base" in parts and len(parts) > 1:
        raise InputError(f"optim.method: {method!r} is no sum; base stands alone")
    if len([part for part in parts if part in RESCALINGS]) > 1:
        raise InputError(f"optim.method: {method!r} rescales twice; give one of das, nbar, obar")
    return parts


def check_fit(config: Config) -> None:
    """InputError when keys that are right one by one do not fit together."""
    _check_data(config)
    _check_network(config)
    _check_optim(config)
    if config.sharding.replicas > 1 and config.sharding.plan != "fsdp":
        raise InputError(f"sharding.replicas: {config.sharding.replicas} needs sharding.plan=fsdp")
    if config.train.early_stopping is not None and config.data.validation == 0:
        raise InputError(f"train.early_stopping: {config.train.early_stopping} needs data.validation > 0")


def _check_data(config: Config) -> None:
    data = config.data
    if data.source == "file" and not data.path:
        raise InputError("data.path: is missing; source file needs a .npy or .npz file")
    if data.source != "file" and data.path is not None:
        raise InputError(f"data.path: {data.path!r} is not used by data.source={data.source}; set source to file")
    for key in ("equation", "sizes"):
        given = getattr(data, key)
        if data.source == "lowrank" and given is None:
            raise InputError(f"data.{key}: is missing; data.source=lowrank needs it")
        if data.source != "lowrank" and given is not None:
            raise InputError(f"data.{key}: {given!r} is for data.source=lowrank; the source is {data.source}")
    for key, why in (("noise", "leave it at 0"), ("seed", "the split and the start are drawn by run.seed")):
        given, default = getattr(data, key), type(data).model_fields[key].default
        if data.source != "lowrank" and given != default:
            raise InputError(f"data.{key}: {given!r} is for data.source=lowrank; the source is {data.source}: {why}")
    if data.split != "fibres" and data.fibre_mode is not None:
        raise InputError(f"data.fibre_mode: {data.fibre_mode} is for data.split=fibres; the split is {data.split}")
    if data.split == "fibres" and data.fibre_mode is None:
        raise InputError("data.fibre_mode: is missing; data.split=fibres needs the mode that fibres run along")


def _check_network(config: Config) -> None:
    network = config.network
    needed = {"tucker": ["ranks"], "einsum": ["equation", "sizes"]}.get(network.format, ["bond_dim"])
    for key in needed:
        if getattr(network, key) is None:
            raise InputError(f"network.{key}: is missing; network.format={network.format} needs it")
    for key in ("bond_dim", "ranks", "equation", "sizes"):
        if key not in needed and getattr(network, key) is not None:
            raise InputError(
                f"network.{key}: {getattr(network, key)!r} is not used by network.format={network.format};"
                f" it takes {' and '.join(needed)}; set network.{key}=null"
            )
    if network.init == "data":
        if network.format == "einsum":
            raise InputError("network.init: 'data' needs format cp, tucker, tt or tr; the format is einsum")
        for key in ("init_norms", "init_std"):
            if getattr(network, key) is not None:
                raise InputError(f"network.{key}: is not used by network.init=data; set init to gaussian")


def _check_optim(config: Config) -> None:
    parts = split_method(config.optim.method)
    rescaling = [part for part in parts if part in RESCALINGS]
    if rescaling and config.optim.alpha is None:
        raise InputError(f"optim.alpha: is missing; optim.method={config.optim.method} needs its strength")
    for key, user in (("lambda_max", "das"), ("norm", "das"), ("scope", "sam")):
        given, default = getattr(config.optim, key), type(config.optim).model_fields[key].default
        if user not in parts and given != default:
            raise InputError(
                f"optim.{key}: {given!r} is not used by optim.method={config.optim.method}; it is for {user}"
            )
    if config.optim.momentum and config.optim.base != "sgd":
        raise InputError(f"optim.momentum: {config.optim.momentum} is for sgd; optim.base is {config.optim.base}")
