"""What moves bytes. An engine accepts connections, drives the stages' hooks and sends what they built; it decides
nothing.
"""
