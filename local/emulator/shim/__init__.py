"""Supervisors: one small process per training job and per endpoint replica, which outlives the emulator."""
