"""Seconds, bytes and rounds until fixed validation levels: Flower, a plain loop, and fedpeft's defaults."""
