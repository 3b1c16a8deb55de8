"""Optional packages, and the one line that says which extra brings a missing one."""

import importlib
from types import ModuleType

from prefopt.errors import UserError

# The module whose absence is meant may be one that the named module imports.
_PACKAGE_OF_EXTRA = {
    "judge": ("openai",),
    "stats": ("scipy", "statsmodels"),
    "unlearn": ("rouge_score", "scipy"),
}


def need(module: str, extra: str) -> ModuleType:
    """An imported module that needs an optional package, itself or through what it imports.

    Args:
        module: full name, such as prefopt.evaluation.judge.openai_chat.
        extra: the extra of prefopt that brings the package: judge, stats or unlearn.

    Raises:
        UserError: naming the extra, if its package is not installed.
    """
    packages = _PACKAGE_OF_EXTRA[extra]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in packages:
            raise
    raise UserError(f"this needs the package {missing}. Install it: pip install 'prefopt[{extra}]'")
