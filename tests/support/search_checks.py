"""What a search emits, against the topology it was given."""

from __future__ import annotations

from scepsy_hpc.planning.search.problem import SearchProblem, Solution


def check_placed(solution: Solution, problem: SearchProblem) -> None:
    """What is emitted is the choice, on free GPUs, within shares, domains and the GPU limit."""
    load: dict[tuple[str, int], int] = {}
    for instance in solution.instances:
        option = solution.chosen[instance.llm]
        node = problem.topology.node(instance.node)
        domain = next(d for d in node.domains if instance.gpus[0] in d.gpus)
        assert set(instance.gpus) <= set(node.free_in(domain))
        assert len(set(instance.gpus)) == option.tp_degree
        assert node.gpu_type == option.gpu_type
        assert option.link in (None, domain.link)
        for gpu in instance.gpus:
            load[node.name, gpu] = load.get((node.name, gpu), 0) + instance.gpu_share_pct
    assert all(share <= 100 for share in load.values())
    for llm, option in solution.chosen.items():
        assert sum(i.llm == llm for i in solution.instances) == option.num_replicas
    assert solution.num_gpus == len(load)
    assert problem.max_gpus is None or len(load) <= problem.max_gpus
