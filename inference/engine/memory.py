"""Which operations of a captured graph share memory with their operands, and which nodes are written into."""

from __future__ import annotations

import operator

from torch import fx


def is_view(node: fx.Node) -> bool:
    """Whether a node shares the memory of an operand."""
    source = node.args[0] if node.target is operator.getitem else node
    schema = getattr(getattr(source, "target", None), "_schema", None)
    return schema is not None and any(argument.alias_info is not None for argument in schema.arguments)


def written(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose memory some operation writes into, through whichever view."""
    memory: dict[fx.Node, set[fx.Node]] = {}
    changed: set[fx.Node] = set()
    for node in graph.nodes:
        memory[node] = {node}
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            memory[node] |= set().union(*(memory[n] for n in node.all_input_nodes))
            continue
        for k, argument in enumerate(schema.arguments):
            if argument.alias_info is None:
                continue
            value = node.args[k] if k < len(node.args) else node.kwargs.get(argument.name)
            for n in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(n, fx.Node):
                    memory[node] |= memory[n]
                    if argument.alias_info.is_write:
                        changed |= memory[n]
    return {node for node, parts in memory.items() if parts & changed}
