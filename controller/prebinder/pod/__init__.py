"""What runs in a build's pod: three containers of the builder image, one after the other.

    fetch   pulls base image and layer cache from our registry; may have credentials to read
    build   runs repo2docker with buildah, without any secret; leaves an image in a shared folder
    push    checks that folder and pushes it; alone has the credentials to push

`python -m prebinder.pod fetch|build|push`, with the order in the environment (`builders/kubernetes/wire.py`).
What the build leaves is untrusted: it may have been made by a step of the repository that took over its container.
"""
