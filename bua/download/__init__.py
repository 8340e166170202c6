"""Fetches the data sets from their official addresses, and unpacks them into the folders that bua expects."""

from bua.download.archives import unpack
from bua.download.catalog import CATALOG
from bua.download.http import fetch
from bua.download.run import download

__all__ = ["CATALOG", "download", "fetch", "unpack"]
