"""Parameters of a network that was built, counted one by one."""

from mdl.networks.blocks import norm_parameters
from mdl.networks.multipath import MultiPathNetwork
from mdl.networks.parameters import Parameters


def count_parameters(network: MultiPathNetwork) -> Parameters:
    heads = sum(p.numel() for p in network.heads.parameters())
    norm = sum(p.numel() for p in norm_parameters(network))
    total = sum(p.numel() for p in network.parameters())
    return Parameters(total - heads - norm, norm, heads)
