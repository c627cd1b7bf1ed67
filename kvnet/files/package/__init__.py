"""Memory packages: a folder or a zip of a memory file and what is known of it (FORMAT.md §9)."""

from kvnet.files.package.compose import About, compose_documents
from kvnet.files.package.listing import PACKAGE_TYPE, PackageFile, check_listing
from kvnet.files.package.reader import Package, is_package
from kvnet.files.package.writer import PackageParts, write_package

__all__ = [
    "PACKAGE_TYPE",
    "About",
    "Package",
    "PackageFile",
    "PackageParts",
    "check_listing",
    "compose_documents",
    "is_package",
    "write_package",
]
