"""Optional packages, and the one line that says which extra brings a missing one."""

from prefopt.errors import UserError

_EXTRAS = {
    "openai": "judge",
    "scipy": "stats",
    "statsmodels": "stats",
    "rouge_score": "unlearn",
}


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """What to say where an import failed for want of an optional package; None for any other."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    return UserError(
        f"this needs the package {package}. Install it: pip install 'prefopt[{_EXTRAS[package]}]'"
    )
