"""Collecting a suspect's outputs from its endpoint: every answer kept, bounded, resumable, and stopped in time."""
