"""Tests mirror the packages: core, convert, train; the commands as users type them lie beside."""
