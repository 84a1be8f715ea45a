"""Student's t distribution, of numbers and of arrays; scipy is loaded when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["below", "quantile"]


@overload
def quantile(degrees: float, probability: float) -> float: ...
@overload
def quantile(degrees: npt.ArrayLike, probability: npt.ArrayLike) -> npt.NDArray[np.float64]: ...
def quantile(degrees: Any, probability: Any) -> Any:
    """Return t below which a value lies with this probability, at so many degrees of freedom; infinite ones, too."""
    from scipy.special import stdtrit

    return stdtrit(degrees, probability)


@overload
def below(degrees: float, t: float) -> float: ...
@overload
def below(degrees: npt.ArrayLike, t: npt.ArrayLike) -> npt.NDArray[np.float64]: ...
def below(degrees: Any, t: Any) -> Any:
    """Return the probability of a value below t."""
    from scipy.special import stdtr

    return stdtr(degrees, t)
