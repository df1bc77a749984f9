"""Estimators for scikit-learn, trained by Downpour and Sandblaster; needs the extra `sklearn`."""

try:
    from sklearn.utils.validation import validate_data as _validate_data  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"dbdask.sklearn needs scikit-learn 1.6 or newer ({error}): pip install 'dbdask[sklearn]'"
    ) from error

from dbdask.sklearn.downpour import DownpourClassifier, DownpourRegressor
from dbdask.sklearn.sandblaster import SandblasterClassifier

__all__ = ["DownpourClassifier", "DownpourRegressor", "SandblasterClassifier"]
