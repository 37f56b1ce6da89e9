"""A Jinja sandbox for chat templates, with a budget of time, memory and output.

A chat template comes with a model, so it is code from the network. Jinja's sandbox keeps a template away from Python's
internals. This sandbox also keeps it from running or growing without end. Jinja has no hook for that, so the template's
syntax tree is rewritten before it is compiled: every loop pass and every `~` calls the environment, as every call and
every operator already does.
"""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ryzjax.data.template_budget import TemplateLimits, current_budget, metered
from ryzjax.data.template_filters import bound_filters, countable, counted
from ryzjax.data.template_meter import meter

__all__ = ["TemplateSandbox"]

_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_UNBOUNDED = frozenset({"translate", "maketrans"})
"""String methods that build a large string from a few characters. No chat template needs them."""
_MAX_POWER = 64


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles and runs templates within `limits`.

    A rendering that exceeds them raises `jinja2.exceptions.SecurityError`.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, limits: TemplateLimits):
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols], finalize=countable
        )
        self.limits = limits
        self.globals["namespace"] = _SafeNamespace
        self.globals["dict"] = lambda **items: items
        for name in ("lipsum", "joiner", "cycler"):
            del self.globals[name]
        bound_filters(self)

    def add_text_filter(self, name: str, text_filter: Callable[..., object]) -> None:
        """Adds a filter that turns its first argument into text. The size of the argument is checked first."""
        self.filters[name] = counted(text_filter)

    def marks_generation(self, source: str) -> bool:
        """Returns whether `source` marks what the assistant writes with {% generation %}."""
        names = (node.name for node in self.parse(source).find_all(nodes.EnvironmentAttribute))
        return _GenerationTag.hook in names

    def compile_bounded(self, source: str) -> Callable[[dict[str, object], tuple[str, str]], str]:
        """Compiles `source`.

        Returns:
          A function of the template's variables and of the two texts that mark the start and the end of a
          {% generation %} block. It returns the rendered text.

        Raises:
          jinja2.exceptions.TemplateSyntaxError: `source` is not a template.
        """
        tree = self.parse(source)
        meter(tree, self)
        template = self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

        def render(variables: dict[str, object], marks: tuple[str, str]) -> str:
            with metered(self.limits, marks) as budget:
                parts: list[str] = []
                size = 0
                for part in template.root_render_func(template.new_context(variables)):
                    size += len(part)
                    budget.check_size(size)
                    budget.check_time()
                    parts.append(part)
                return "".join(parts)

        return render

    def count_loop_pass(self) -> str:
        """Called by the compiled template at the start of every loop pass."""
        budget = current_budget()
        budget.loop_passes += 1
        if budget.loop_passes > budget.limits.max_loop_passes:
            raise SecurityError(f"its loops ran more than {budget.limits.max_loop_passes} times")
        budget.check_time()
        return ""

    def generation_mark(self, which: int) -> str:
        """Called by the compiled template at the start (0) and at the end (1) of a {% generation %} block."""
        return current_budget().marks[which]

    def join_strings(self, *parts: object) -> str:
        """Called by the compiled template for `a ~ b`."""
        texts = [str(countable(part)) for part in parts]
        current_budget().check_size(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Context, __obj: Callable[..., object], *args: object, **kwargs: object) -> object:
        budget = current_budget()
        budget.check_time()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name in _UNBOUNDED:
                raise SecurityError(f"it calls str.{name}, which is not allowed in a chat template")
            if name in _PADDING:
                widths = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, int)]
                budget.check_size(max(widths, default=0) * (len(owner) if name == "expandtabs" else 1))
            if name == "join" and args and isinstance(args[0], (list, tuple)):
                budget.check_size(len(args[0]) * len(owner) + sum(len(p) for p in args[0] if isinstance(p, str)))
            if name == "replace":
                texts = [arg for arg in args if isinstance(arg, str)]
                budget.check_size(owner.count(texts[0]) * len(texts[1]) if len(texts) == 2 else 0)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str):
            budget.check_size(len(result))
        return result

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        safe_format = super().wrap_str_format(value)
        if safe_format is None:
            return None
        template = getattr(value, "__self__", "")

        def bounded(*args: object, **kwargs: object) -> str:
            # Only plain fields are allowed, because a width such as {:>9999999999} builds a string of any size.
            if any(":" in field for field in str(template).split("{")[1:]):
                raise SecurityError("it gives str.format a format after ':', which is not allowed in a chat template")
            longest = max((len(str(countable(arg))) for arg in (*args, *kwargs.values())), default=0)
            current_budget().check_size(len(template) + template.count("{") * longest)
            return safe_format(*args, **kwargs)

        return bounded

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        budget = current_budget()
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    budget.check_size(len(value) * max(times, 0))
        elif operator == "+":
            if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
                budget.check_size(len(left) + len(right))
        elif operator == "**":
            if not isinstance(right, (int, float)) or abs(right) > _MAX_POWER:
                raise SecurityError(f"it raises to the power {right!r}; at most {_MAX_POWER} is allowed")
        elif isinstance(left, str):
            raise SecurityError("it formats with %, which is not allowed in a chat template; use ~")
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > 4096:
            raise SecurityError("it computes a number of more than 4096 bits")
        return result


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training. It has no effect when serving."""

    tags = {"generation"}  # noqa: RUF012 - the type the base class declares
    hook = "generation_mark"

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([self._mark(which)]).set_lineno(line) for which in (0, 1))
        return [begin, *body, end]

    def _mark(self, which: int) -> nodes.Expr:
        return nodes.Call(nodes.EnvironmentAttribute(self.hook), [nodes.Const(which)], [], None, None)


class _SafeNamespace(Namespace):
    """Jinja's namespace, which refuses names that reach Python's internals."""

    def __init__(self, *args: object, **kwargs: object):
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: object) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"it sets {name!r} on a namespace; names must not start with an underscore")
        super().__setitem__(name, value)
