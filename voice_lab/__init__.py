"""voice_lab: makes the demo voice of cosyfarm, a small model of CosyVoice3's architecture, from synthetic speech.

Needed only to make the model, never to run it. docs/VOICE.md has the method, the figures and the commands.
"""
