"""Rewrites a template's syntax tree so that every loop pass and every `~` calls the environment."""

from __future__ import annotations

from jinja2 import Environment, nodes

__all__ = ["meter"]


def meter(tree: nodes.Template, environment: Environment) -> None:
    """Makes every loop pass and every `~` of the tree call the environment."""
    for loop in list(tree.find_all(nodes.For)):
        tick = nodes.Call(nodes.EnvironmentAttribute("count_loop_pass"), [], [], None, None)
        loop.body.insert(0, nodes.ExprStmt(tick))
        tick.set_lineno(loop.lineno)
        loop.body[0].set_lineno(loop.lineno)
        loop.body[0].set_environment(environment)
        if (
            loop.test is not None
        ):  # A pass that the test skips counts too. The tick returns "", so the test keeps its value.
            again = nodes.Call(nodes.EnvironmentAttribute("count_loop_pass"), [], [], None, None)
            loop.test = nodes.And(nodes.Not(again), loop.test)
            loop.test.set_lineno(loop.lineno)
            loop.test.set_environment(environment)
    _replace_concats(tree, environment)


def _replace_concats(node: nodes.Node, environment: Environment) -> None:
    for name, value in list(node.iter_fields()):
        if isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, nodes.Node):
                    _replace_concats(item, environment)
                    value[i] = _joined(item, environment)
        elif isinstance(value, nodes.Node):
            _replace_concats(value, environment)
            setattr(node, name, _joined(value, environment))


def _joined(node: nodes.Node, environment: Environment) -> nodes.Node:
    if not isinstance(node, nodes.Concat):
        return node
    call = nodes.Call(nodes.EnvironmentAttribute("join_strings"), node.nodes, [], None, None)
    call.set_lineno(node.lineno)
    call.set_environment(environment)
    return call
