"""The losses as their equations read, image by image and instance by instance: what the fast ones are checked against
and measured by. The networks' weights are shared; only torch's and torchvision's own operations are used on them.
"""
