"""The keys of a recipe, with their types and defaults.

These dataclasses are the reference. A recipe has to name its space and its phase;
everything else has a default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

LARGEST = "largest"  # of data.domains


@dataclass
class StageRecipe:
    """A row of the space's table."""

    width: int = MISSING
    depth: int = MISSING
    stride: int = MISSING
    activation: str = MISSING  # relu | hardswish
    skippable: int | None = None  # last layers that may be skipped; null: all that can


@dataclass
class SpaceRecipe:
    stem_width: int = MISSING
    stem_stride: int = MISSING
    stages: list[StageRecipe] = MISSING
    head_width: int = MISSING
    kernels: list[int] = field(default_factory=lambda: [3, 5, 7])
    expansions: list[int] = field(default_factory=lambda: [3, 6])
    squeeze_excite: list[bool] = field(default_factory=lambda: [False, True])


@dataclass
class DomainDataRecipe:
    """What one domain has otherwise than the others; null: as they have it."""

    image_size: int | None = None
    load_size: int | None = None
    batch_size: int | None = None


@dataclass
class DataRecipe:
    # a folder, or an address (https://, s3://, gs://); the default is made on first use
    root: str = "data/miniature"
    cache_dir: str = "data/cache"  # where the shards of an address are kept
    cache_gb: float = 100.0  # thousand million bytes of them; used longest ago, dropped first
    # names | null: all that lie there | largest: the one with the most training images
    domains: Any = None
    image_size: int = 32  # side of what the network sees, px
    load_size: int = 36  # side of what is decoded, from which that is cut
    batch_size: int = 16  # images of each domain per step, over all ranks
    # balanced: the same of each domain | proportional to its size | a temperature t >= 1:
    # proportional to size ** (1 / t), with batch_size as the mean
    sampling: Any = "balanced"
    per_domain: dict[str, DomainDataRecipe] = field(default_factory=dict)
    train_splits: list[str] = field(default_factory=lambda: ["train"])  # [train, val]: for a test
    evaluation_batch_size: int = 64  # images of each domain per step and rank
    held_out: float = 0.2  # part of the training images that only rewards see (search)
    workers: int = 1  # decoding processes per rank
    # a folder where images are kept decoded, load_size ** 2 * 3 bytes each; null: decoded each time
    decoded_dir: str | None = None
    broken_images_limit: int = 10  # per domain; one more ends the run


@dataclass
class NetworkRecipe:
    batch_norm: str = "per_domain"  # per_domain | shared
    # all: over the images of all ranks, so that a run does not depend on their number | own: each
    # rank by its own images
    batch_norm_ranks: str = "all"
    nodes: str = "shared"  # shared | private: a bundle of single-domain networks


@dataclass
class OptimizerRecipe:
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    warmup_fraction: float = 0.05
    label_smoothing: float = 0.1
    clip_norm: float | None = 5.0


@dataclass
class BalancingRecipe:
    """How the domains' losses are weighted."""

    # none: equally, or as a callback such as ABDP sets | gradnorm | uncertainty | dwa | famo
    method: str = "none"
    learning_rate: float = 0.025  # of what gradnorm, uncertainty and famo learn
    alpha: float = 1.5  # gradnorm: favours domains that learn slowly; 0: equal gradient norms
    initial_loss: str = "measured"  # gradnorm: measured, in the first step | log_classes, a guess's
    temperature: float = 2.0  # dwa: greater is more equal
    interval: int = 50  # dwa: steps that stand for an epoch


@dataclass
class RewardRecipe:
    beta: float = -0.1  # weight of |macs / target - 1|
    target: float = 0.75  # of the multiply-adds of a uniformly drawn path
    baseline_momentum: float = 0.95


@dataclass
class TargetRecipe:
    """Wanted totals of the searched network; null: whatever the rewards lead to."""

    # with heads and norm, what is shared counted once; with backbone_file: what is added to it
    params: float | None = None
    macs: float | None = None  # summed over domains; replaces the reward's cost
    # in their place, for any domains: of what single path multi-head has, the space's reference
    # block in every layer for all domains
    params_ratio: float | None = None
    macs_ratio: float | None = None


@dataclass
class LatencyRecipe:
    """Of search.cost=latency."""

    file: str | None = None  # a table of python -m mdl.profile, or of a device of one's own
    runtime: str | None = None  # that the table has to be of; null: any
    budget: Any = None  # milliseconds of a path, of every domain or {domain: milliseconds}


@dataclass
class SearchRecipe:
    # of a path, in the reward: macs, against reward.target | latency, against latency.budget
    cost: str = "macs"
    latency: LatencyRecipe = field(default_factory=LatencyRecipe)
    controllers: str = "per_domain"  # per_domain | common: one for all (multi-head NAS)
    learning_rate: float = 0.05
    beta1: float = 0.5
    warmup_fraction: float = 0.25  # paths of the start, resting controllers
    warmup_common_path: bool = True
    # a checkpoint of an earlier search: its weights rest, controllers are searched anew
    supernet_file: str | None = None
    # a checkpoint of a search of one common path (controllers: common): every domain's controller
    # sets out from that one, and leaves it where its images ask for it
    common_file: str | None = None
    # a retraining's checkpoint: paths of new domains are searched through its nodes, which rest;
    # new_blocks: also through blocks that no path of it has, which are trained
    backbone_file: str | None = None
    new_blocks: bool = False
    # with supernet_file and a target: so many random networks of that size in place of
    # controllers, rewarded as they are; the best is what a search has to beat
    candidates: int | None = None
    # so many networks trained from scratch side by side, the worse half dropped round by round;
    # controllers_file: a finished search's checkpoint, whose controllers give them; null: random
    # networks of the target; with backbone_file: random additions to it
    finalists: int | None = None
    controllers_file: str | None = None
    paths_per_step: int = 1  # per domain, rewarded on the same images
    held_out_batch_size: int = 32
    # what the warm-up draws, and controllers begin with: blocks, a layer's equally likely |
    # expansions, these equally likely, a skipped layer's being 0, then the rest
    start: str = "blocks"
    block_weights: str = "own"  # own | tied: the blocks of a layer are parts of its largest
    # weight of the sharing bonus between controllers whose domains can share nodes; 0: the plain
    # published form
    sharing: float = 0.0
    target: TargetRecipe = field(default_factory=TargetRecipe)
    reward: RewardRecipe = field(default_factory=RewardRecipe)


@dataclass
class RetrainRecipe:
    # searched: those of architecture_file | common: one path for all domains (single path
    # multi-head) | widened: that path, the space's widths multiplied until it weighs what the
    # searched paths do | random: drawn by the seed, of the size and cost of the searched |
    # backbone: the common path of backbone_file's network, beginning with its weights |
    # added: the paths of backbone_file's network, which stays as it is, and those of
    # architecture_file for domains that it lacks, which are trained
    paths: str = "searched"
    draw: int = 0  # which of a seed's random paths
    # common, widened: an architecture.json whose domains, whichever they are, have one common
    # path; null: the path of the space's reference block at every layer
    common_file: str | None = None
    backbone_file: str | None = (
        None  # backbone, added: a retraining's checkpoint, in its run folder
    )
    backbone: str = "frozen"  # frozen: only the heads are trained | trained: all goes on from it
    ema_decay: float = 0.99


@dataclass
class TrainerRecipe:
    max_steps: int = MISSING
    accelerator: str = "auto"
    devices: Any = 1  # a number, a list, or "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    timeout: float = 30.0  # minutes that ranks wait for one that does not go on; then all end
    precision: str = "32-true"  # or bf16-mixed
    # on a GPU, a retraining's step is launched as a whole and not kernel by kernel
    cuda_graph: bool = True
    compile: bool = False  # the retrained network; minutes at the start of a run
    threads: int | None = None  # of the CPU; null: as torch finds best
    validation_interval: int = 100  # steps
    checkpoint_interval: int = 100  # steps
    record_interval: int = 10  # steps


@dataclass
class WandbRecipe:
    mode: str = "auto"  # auto: online where logged in, else offline | online | offline | disabled
    project: str = "mdl"


@dataclass
class Recipe:
    """All keys of a recipe."""

    phase: str = MISSING  # search | retrain
    name: str = MISSING
    runs_dir: str = "runs"
    seed: int = 0
    architecture_file: str | None = None  # retrain
    data: DataRecipe = field(default_factory=DataRecipe)
    space: SpaceRecipe = field(default_factory=SpaceRecipe)
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    balancing: BalancingRecipe = field(default_factory=BalancingRecipe)
    search: SearchRecipe = field(default_factory=SearchRecipe)
    retrain: RetrainRecipe = field(default_factory=RetrainRecipe)
    trainer: TrainerRecipe = field(default_factory=TrainerRecipe)
    wandb: WandbRecipe = field(default_factory=WandbRecipe)
    # name -> {class: dotted.name, **arguments}; name -> null takes one away
    callbacks: dict[str, Any] = field(default_factory=dict)


def image_sizes(data: DataRecipe, domains: Iterable[str]) -> dict[str, int]:
    """Domain -> side of what the network sees of it, px."""
    own = {name: of.image_size for name, of in data.per_domain.items()}
    return {name: own.get(name) or data.image_size for name in domains}


def load_sizes(data: DataRecipe, domains: Iterable[str]) -> dict[str, int]:
    """Domain -> side of what is decoded of it, px; an own image size keeps the proportion."""
    sizes = {}
    for name, side in image_sizes(data, domains).items():
        own = data.per_domain[name].load_size if name in data.per_domain else None
        sizes[name] = own or round(side * data.load_size / data.image_size)
    return sizes
