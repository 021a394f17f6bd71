"""From one raw scan to one packed volume: skull stripping, registration, intensities, pictures.

Every module imports ANTs, torch and matplotlib inside its functions, so that a
script that only reads volumes starts at once.
"""
