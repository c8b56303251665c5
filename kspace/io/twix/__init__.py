"""Siemens twix raw data: conversion to ISMRMRD."""

from kspace.io.twix.file import to_ismrmrd

__all__ = ["to_ismrmrd"]
