"""From a recipe to the objects of a run: the classes that train know no recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mdl.data.cache import is_address
from mdl.data.datamodule import MultiDomainData
from mdl.data.domains import Domain, read_domains, read_remote_domains
from mdl.data.embedded import ROOT as EMBEDDED_ROOT
from mdl.data.embedded import is_generated, pack_generated
from mdl.data.transforms import Colour, common_statistics
from mdl.errors import UserError, nearest
from mdl.networks.blocks import norm_parameters
from mdl.networks.controller import Controllers
from mdl.networks.cost import CostTable, macs_of_all_domains
from mdl.networks.draws import RandomPaths
from mdl.networks.latencies import PathLatencies
from mdl.networks.multipath import MultiPathNetwork, Node, path_users, supernet_users
from mdl.networks.parameters import ParameterTable
from mdl.networks.sizing import SizeTable, Target
from mdl.recipe import LARGEST, BalancingRecipe, Recipe, SpaceRecipe, image_sizes, load_sizes
from mdl.run_folder import RunFolder
from mdl.space.architecture import Architecture
from mdl.space.latency import LatencyTable
from mdl.space.search_space import Block, SearchSpace, Stage
from mdl.space.search_space import Path as SpacePath
from mdl.training.balancer import Balancer
from mdl.training.finalists import FinalistsModule
from mdl.training.gradnorm import GradNorm
from mdl.training.random_search import RandomSearchModule
from mdl.training.retrain import RetrainModule
from mdl.training.scalarization import (
    DynamicWeightAverage,
    FastAdaptive,
    UncertaintyWeighting,
)
from mdl.training.search import SearchModule


def build_space(recipe: SpaceRecipe) -> SearchSpace:
    return SearchSpace(
        stem_width=recipe.stem_width,
        stem_stride=recipe.stem_stride,
        stages=tuple(Stage(**vars(stage)) for stage in recipe.stages),
        head_width=recipe.head_width,
        kernels=tuple(recipe.kernels),
        expansions=tuple(recipe.expansions),
        squeeze_excite=tuple(recipe.squeeze_excite),
    )


def find_domains(recipe: Recipe) -> dict[str, Domain]:
    """The packed domains that the recipe names; the embedded default is made on first use."""
    data = recipe.data
    names = None if data.domains == LARGEST else data.domains
    if is_address(data.root):
        limit = int(data.cache_gb * 1e9)
        found = read_remote_domains(data.root, names, Path(data.cache_dir), limit)
    else:
        root = Path(data.root)
        if data.root == EMBEDDED_ROOT and not is_generated(root):
            pack_generated(root)
        found = read_domains(root, names)
    if data.domains != LARGEST:
        return found
    largest = max(found, key=lambda name: found[name].split("train").images)
    return {largest: found[largest]}


def build_data(
    recipe: Recipe,
    domains: Mapping[str, Domain],
    trained: Sequence[str] = (),
    architecture: Architecture | None = None,
) -> MultiDomainData:
    """trained: the domains that training batches are of, see `MultiDomainData`; empty: all.

    architecture: a retraining's, which says what its images are normalised by (`normalisation`).
    """
    data = recipe.data
    for name in data.per_domain:
        if name not in domains:
            hint = nearest(name, list(domains))
            raise UserError(f"data.per_domain names '{name}', which is no domain here; {hint}")
    own = {name: of.batch_size for name, of in data.per_domain.items()}
    return MultiDomainData(
        domains,
        batch_size=data.batch_size,
        sampling=data.sampling,
        own_batch_size={name: size for name, size in own.items() if size is not None},
        train_splits=data.train_splits,
        held_out_batch_size=(
            recipe.search.held_out_batch_size if recipe.phase == "search" else None
        ),
        held_out=data.held_out,
        image_size=image_sizes(data, domains),
        load_size=load_sizes(data, domains),
        evaluation_batch_size=data.evaluation_batch_size,
        seed=recipe.seed,
        workers=data.workers,
        broken_images_limit=data.broken_images_limit,
        common_normalisation=normalisation(recipe, domains, architecture),
        rewards_only=recipe.phase == "search" and recipe.search.supernet_file is not None,
        trained=trained,
        decoded_dir=Path(data.decoded_dir) if data.decoded_dir is not None else None,
    )


def normalisation(
    recipe: Recipe, domains: Mapping[str, Domain], architecture: Architecture | None
) -> tuple[Colour, Colour] | None:
    """Mean and deviation of RGB in [0, 1] that all images are normalised by; None: each by its own.

    With shared batch norm what domains compute in common needs a common input: the mean of their
    statistics, or, of a trained backbone, what it was trained with, which architectures note.
    """
    if recipe.network.batch_norm != "shared":
        return None
    noted = None if architecture is None else architecture.source.get("normalisation")
    return common_statistics(domains) if noted is None else (tuple(noted[0]), tuple(noted[1]))


def count_classes(domains: Mapping[str, Domain]) -> dict[str, int]:
    return {name: len(domain.classes) for name, domain in domains.items()}


def build_search(recipe: Recipe, domains: Mapping[str, Domain]) -> SearchModule:
    """Super-network, controllers and what the recipe says of their training."""
    space, num_classes = build_space(recipe.space), count_classes(domains)
    private = recipe.network.nodes == "private"
    network = MultiPathNetwork(
        space,
        supernet_users(space, list(domains), private),
        num_classes,
        batch_norm=recipe.network.batch_norm,
        running=False,
        norm_over_ranks=recipe.network.batch_norm_ranks == "all",
        tied=recipe.search.block_weights == "tied",
    )
    search = recipe.search
    can_share = search.controllers == "per_domain" and not private
    costs = build_costs(recipe, domains)
    controllers = Controllers(space, list(domains), search.controllers == "common", search.start)
    sizes = build_sizes(recipe, domains)
    if search.backbone_file is not None:
        offer_reused(recipe, domains, controllers, sizes)
        _rest(network, _reused_nodes(recipe, domains))
    parts = (
        _channels_last(network),
        controllers,
        costs,
        sizes,
    )
    settings: dict[str, Any] = {
        "seed": recipe.seed,
        "controller_learning_rate": search.learning_rate,
        "controller_beta1": search.beta1,
        "warmup_fraction_paths": search.warmup_fraction,
        "warmup_common_path": search.warmup_common_path,
        "sharing": search.sharing if can_share else 0.0,
        "paths_per_step": search.paths_per_step,
        "target_size": build_target(recipe, domains),
        **vars(search.reward),
        **_weights_training(recipe, domains),
    }
    if search.cost == "latency":
        settings["latencies"] = build_latencies(recipe, domains)
    if search.candidates is None:
        module = SearchModule(*parts, frozen=search.supernet_file is not None, **settings)
        module.architecture({})  # a size or time out of reach is told now and not at the end
        return module
    drawn = draw_random(recipe, domains, search.candidates)
    return RandomSearchModule(*parts, candidates=drawn, **settings)


def offer_reused(
    recipe: Recipe, domains: Mapping[str, Domain], controllers: Controllers, sizes: SizeTable
) -> None:
    """Offers a new domain the blocks of a trained network (`search.backbone_file`), or all.

    In the sizes what is reused weighs nothing: what is counted is what a new domain adds.

    Raises UserError where the file is no retraining's, has another space, or a path of the domain.
    """
    reused, parameters = _reused_nodes(recipe, domains), build_parameters(recipe, domains)
    offered: list[set[Block]] = [set() for _ in parameters.space.layers]
    for node in reused:
        if isinstance(node.block, Block):
            offered[node.layer].add(node.block)
            layer = parameters.space.layers[node.layer]
            sizes.once[node.layer, layer.blocks.index(node.block)] = 0
        else:
            sizes.fixed[0] -= parameters.weigh(node)[0]
    if not recipe.search.new_blocks:
        controllers.restrict(offered)


def _reused_nodes(recipe: Recipe, domains: Mapping[str, Domain]) -> list[Node]:
    """Those of the trained network. Raises UserError as `offer_reused` does."""
    file = Path(recipe.search.backbone_file or "")
    trained = Architecture.read(RunFolder.of_retraining(file).architecture_file)
    try:
        trained.check_space(build_space(recipe.space))
    except UserError as error:
        raise UserError(f"search.backbone_file = {file} does not serve: {error}") from error
    if known := [domain for domain in domains if domain in trained.domains]:
        raise UserError(
            f"search.backbone_file = {file} has a path for '{known[0]}' already; expected "
            f"data.domains without {', '.join(trained.domains)}."
        )
    return list(path_users(trained.space, trained.paths))


def _rest(network: MultiPathNetwork, reused: Sequence[Node]) -> None:
    """Lets what a network has of a trained one rest, but for its batch norm."""
    for node in reused:
        if node in network.users:
            network.nodes[node.key].requires_grad_(False)
    for parameter in norm_parameters(network):
        parameter.requires_grad_(True)


def build_costs(recipe: Recipe, domains: Mapping[str, Domain]) -> CostTable:
    sizes = image_sizes(recipe.data, domains)
    return CostTable(build_space(recipe.space), sizes, count_classes(domains))


def build_parameters(recipe: Recipe, domains: Mapping[str, Domain]) -> ParameterTable:
    space, batch_norm = build_space(recipe.space), recipe.network.batch_norm
    return ParameterTable(space, count_classes(domains), batch_norm)


def build_sizes(recipe: Recipe, domains: Mapping[str, Domain]) -> SizeTable:
    parameters, costs = build_parameters(recipe, domains), build_costs(recipe, domains)
    private, common = recipe.network.nodes == "private", recipe.search.controllers == "common"
    return SizeTable(parameters, costs, private, common)


def build_latencies(recipe: Recipe, domains: Mapping[str, Domain]) -> PathLatencies:
    """Raises UserError where the table does not fit, or a domain has no budget."""
    latency, classes = recipe.search.latency, count_classes(domains)
    assert latency.file is not None  # a recipe without one is refused
    table = LatencyTable.read(Path(latency.file))
    sizes = image_sizes(recipe.data, domains)
    table.check_fits(latency.file, build_space(recipe.space), sizes, latency.runtime)
    budget = latency.budget
    if not isinstance(budget, dict):
        budget = dict.fromkeys(domains, budget)
    for name in (*budget, *domains):
        if name not in domains or name not in budget:
            raise UserError(
                f"search.latency.budget has {', '.join(budget)}, the data have "
                f"{', '.join(domains)}; expected milliseconds for each. Mend '{name}'."
            )
    return PathLatencies(table, classes, budget, recipe.search.controllers == "common")


def build_target(recipe: Recipe, domains: Mapping[str, Domain]) -> Target:
    """What the recipe asks for, in numbers."""
    wanted = recipe.search.target
    params, macs = wanted.params, wanted.macs
    space = build_space(recipe.space)
    paths = dict.fromkeys(domains, space.uniform_path(space.reference_block))
    if wanted.params_ratio is not None:
        params = wanted.params_ratio * build_parameters(recipe, domains).count(paths).total
    if wanted.macs_ratio is not None:
        macs = wanted.macs_ratio * macs_of_all_domains(paths, build_costs(recipe, domains))
    return Target(params, macs)


def draw_random(
    recipe: Recipe, domains: Mapping[str, Domain], count: int
) -> list[dict[str, SpacePath]]:
    """The first draws of random paths of the recipe's target; it has both sizes."""
    target = build_target(recipe, domains)
    assert target.params is not None and target.macs is not None
    parameters, costs = build_parameters(recipe, domains), build_costs(recipe, domains)
    private = recipe.network.nodes == "private"
    size = target.params, target.macs
    randomly = RandomPaths(list(domains), *size, costs, parameters, private)
    return [randomly.draw(recipe.seed, number) for number in range(count)]


def build_finalists(
    recipe: Recipe, domains: Mapping[str, Domain], finalists: Sequence[Architecture]
) -> FinalistsModule:
    """The derived networks of a search's last round and what the recipe says of their training."""
    networks = [_derived_network(recipe, domains, of) for of in finalists]
    if recipe.search.backbone_file is not None:
        reused = _reused_nodes(recipe, domains)
        for network in networks:
            _rest(network, reused)
    return FinalistsModule(
        networks,
        finalists,
        ema_decay=recipe.retrain.ema_decay,
        cuda_graph=recipe.trainer.cuda_graph,
        **_weights_training(recipe, domains),
    )


def build_retrain(
    recipe: Recipe, domains: Mapping[str, Domain], architecture: Architecture
) -> RetrainModule:
    """The derived network and what the recipe says of its training."""
    # not the space: that of one widened path is not the recipe's
    architecture.check_domains(list(domains))
    module = RetrainModule(
        _derived_network(recipe, domains, architecture),
        {domain: architecture.paths[domain] for domain in domains},
        frozen=recipe.retrain.paths == "backbone" and recipe.retrain.backbone == "frozen",
        added=architecture.source.get("added", ()) if recipe.retrain.paths == "added" else (),
        ema_decay=recipe.retrain.ema_decay,
        cuda_graph=recipe.trainer.cuda_graph,
        **_weights_training(recipe, domains),
    )
    if recipe.trainer.compile:
        module.compile_network()
    return module


def _derived_network(
    recipe: Recipe, domains: Mapping[str, Domain], architecture: Architecture
) -> MultiPathNetwork:
    paths = {domain: architecture.paths[domain] for domain in domains}
    network = MultiPathNetwork(
        architecture.space,
        path_users(architecture.space, paths, recipe.network.nodes == "private"),
        count_classes(domains),
        batch_norm=recipe.network.batch_norm,
        norm_over_ranks=recipe.network.batch_norm_ranks == "all",
    )
    return _channels_last(network)


def _channels_last(network: MultiPathNetwork) -> MultiPathNetwork:
    """The memory format in which depthwise convolutions are several times faster."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _weights_training(recipe: Recipe, domains: Mapping[str, Domain]) -> dict[str, Any]:
    return {
        "total_steps": recipe.trainer.max_steps,
        "record_interval": recipe.trainer.record_interval,
        "balancer": build_balancer(recipe.balancing, count_classes(domains)),
        **asdict(recipe.optimizer),
    }


def build_balancer(recipe: BalancingRecipe, num_classes: Mapping[str, int]) -> Balancer | None:
    """Raises UserError where a domain has one class: its loss is 0 whatever is learnt."""
    single = [domain for domain, count in num_classes.items() if count == 1]
    if single and recipe.method != "none":
        raise UserError(
            f"balancing.method is {recipe.method}, and '{single[0]}' has one class: its loss is 0 "
            "from the start, and balancers weigh by how losses fall. Leave it out with "
            "data.domains, or set balancing.method=none."
        )
    match recipe.method:
        case "gradnorm":
            return GradNorm(recipe.alpha, recipe.learning_rate, recipe.initial_loss)
        case "uncertainty":
            return UncertaintyWeighting(recipe.learning_rate)
        case "dwa":
            return DynamicWeightAverage(recipe.temperature, recipe.interval)
        case "famo":
            return FastAdaptive(recipe.learning_rate)
    return None
