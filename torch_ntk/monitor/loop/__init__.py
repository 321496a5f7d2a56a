"""The schedule of measurements, the session that measures, and `Monitor`."""

from ._session import Session as Session
from ._settings import CommonOptions as CommonOptions
from ._settings import SessionOptions as SessionOptions
