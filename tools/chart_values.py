"""The values of the chart `prebinder`: types and meaning of every one, by the names that Helm's people expect.

tools/chart.py makes the schema and the README of them. charts/prebinder/values.yaml holds the defaults.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Anything = dict[str, Any]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Image(Section):
    """Image of controller and launch endpoint."""

    repository: str
    """Registry and name."""
    tag: str
    """Tag; the chart's `appVersion` by default."""
    digest: str = Field(pattern=r"^$|^sha256:[0-9a-f]{64}$")
    """Digest; wins over the tag."""
    pullPolicy: Literal["IfNotPresent", "Always", "Never"]
    """When nodes pull it."""
    pullSecrets: list[str]
    """Names of Secrets with the registry's credentials."""


class BuilderImage(Section):
    """Image of builds, with the same version of Prebinder as the controller."""

    repository: str
    """Registry and name."""
    tag: str
    """Tag; the chart's `appVersion` by default."""
    digest: str = Field(pattern=r"^$|^sha256:[0-9a-f]{64}$")
    """Digest; wins over the tag."""


class KeyOfSecret(Section):
    """A key of a Secret."""

    name: str
    """Name of the Secret; with zero-to-jupyterhub it is `hub`."""
    key: str = Field(min_length=1)
    """Key in it; with zero-to-jupyterhub `hub.services.prebinder.apiToken`."""


class Hub(Section):
    """JupyterHub. What is said here stands in `config.hub` for the pods."""

    url: str = Field(pattern=r"^$|^https?://")
    """Address of its proxy inside the cluster, for example `http://proxy-public`."""
    publicUrl: str = Field(pattern=r"^$|^https?://")
    """The same as browsers reach it."""
    tokenSecret: KeyOfSecret
    """Where the API token of the Hub's service for Prebinder is."""


class MountedSecret(Section):
    """A Secret for the configuration to read from."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")
    """Folder below /etc/prebinder/secrets."""
    secret: str = Field(min_length=1)
    """Name of the Secret."""


class ControllerToken(Section):
    """The token between launch endpoint and controller."""

    existingSecret: str
    """Secret that holds it. Without one the chart makes one at the first install and keeps it; where charts are only
    rendered (GitOps), name one."""
    key: str = Field(min_length=1)
    """Key in it."""


class RegistryCredentials(Section):
    """The registry's credentials, for asking which images exist."""

    secret: str
    """Secret of type `kubernetes.io/dockerconfigjson`."""
    key: str = Field(min_length=1)
    """Key in it."""


class Persistence(Section):
    """The volume of ledger and logs."""

    enabled: bool
    """Whether there is one; without, history and logs end with the pod. Links keep working either way."""
    size: str
    """Its size."""
    storageClass: str
    """Its storage class; the cluster's default when empty."""
    accessModes: list[Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]] = Field(min_length=1)
    """`ReadWriteMany` keeps the logs when one of several controllers takes over on another node."""
    existingClaim: str
    """Name of a claim that is there already."""


class Placed(Section):
    """What every part of Prebinder may be told about its pods."""

    resources: Anything
    """Requests and limits."""
    extraEnv: list[Anything]
    """Further environment variables, for secrets that the configuration names as `{env: NAME}`."""
    podAnnotations: dict[str, str]
    """Further annotations of the pods."""
    podLabels: dict[str, str]
    """Further labels of the pods."""
    nodeSelector: dict[str, str]
    """Nodes they may run on."""
    tolerations: list[Anything]
    """Taints they tolerate."""
    affinity: Anything
    """Where they would rather run."""
    priorityClassName: str
    """Priority class."""


class Controller(Placed):
    """The controller."""

    replicas: int = Field(ge=0, le=10)
    """1, or with `lease` and PostgreSQL more: one is active, the others stand by."""
    lease: bool
    """Whether controllers agree by a Lease on who is active."""
    ipFamily: Literal["IPv4", "IPv6"]
    """With `lease`: the family of pods' addresses."""
    persistence: Persistence
    """The volume of ledger and logs."""


class Budget(Section):
    """How many endpoints a drain of nodes may take away at once."""

    enabled: bool
    """Whether there is a PodDisruptionBudget."""
    maxUnavailable: int | str
    """Number or percentage."""


class Autoscaling(Section):
    """More endpoints when there are more clicks."""

    enabled: bool
    """Whether there is a HorizontalPodAutoscaler; then `replicas` is not used."""
    minReplicas: int = Field(ge=1)
    """Fewest."""
    maxReplicas: int = Field(ge=1)
    """Most."""
    targetCPUUtilizationPercentage: int = Field(ge=1, le=1000)
    """Share of the requested CPU at which there should be one more."""


class EndpointService(Section):
    """The Service of the launch endpoint."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    """Its type."""
    port: int = Field(ge=1, le=65535)
    """Its port."""
    annotations: dict[str, str]
    """Its annotations."""


class Endpoint(Placed):
    """The launch endpoint."""

    replicas: int = Field(ge=0)
    """How many."""
    podDisruptionBudget: Budget
    """How many a drain of nodes may take away at once."""
    autoscaling: Autoscaling
    """More endpoints when there are more clicks."""
    spread: bool
    """Spread them over nodes and zones."""
    service: EndpointService
    """Its Service."""


class Builds(Section):
    """Where the build Jobs run."""

    image: BuilderImage
    """Image of builds."""
    namespace: str
    """Their namespace; the release's own by default. One apart is better: quotas, and Pod Security for the rest."""
    createNamespace: bool
    """Whether the chart makes it (and removes it, with every build in it)."""
    quota: Anything
    """`hard` of a ResourceQuota there, for example `{requests.cpu: "8"}`."""


class Servers(Section):
    """People's servers, which JupyterHub starts."""

    namespace: str
    """Their namespace, for their NetworkPolicy; the release's own by default."""


class Ingress(Section):
    """An Ingress for site and webhooks."""

    enabled: bool
    """Whether there is one."""
    className: str
    """Its class."""
    annotations: dict[str, str]
    """Its annotations. Event streams need an unbuffered answer and a long time limit."""
    host: str
    """Host name."""
    tlsSecret: str
    """Secret with the host's certificate."""


class Gateway(Section):
    """An HTTPRoute of the Gateway API for site and webhooks."""

    enabled: bool
    """Whether there is one."""
    parentRefs: list[Anything]
    """The Gateways."""
    hostnames: list[str]
    """Host names."""


class Egress(Section):
    """One group of pods that run other people's code."""

    enabled: bool
    """Whether the policy is there."""
    extraEgress: list[Anything]
    """Further egress rules, for example to a registry or Git host inside the cluster."""


class NetworkPolicies(Section):
    """Who may talk to whom. Needs a network plugin that enforces NetworkPolicies."""

    enabled: bool
    """Whether there are any."""
    from_: list[Anything] = Field(alias="from")
    """Peers that may reach the site and, with a route, the webhooks: the ingress controller. Empty: everybody."""
    privateCidrs: list[str]
    """Addresses that builds and people's servers never reach. Add the cluster's own if they are not in here."""
    builds: Egress
    """Builds."""
    servers: Egress
    """People's servers."""


class ServiceMonitor(Section):
    """ServiceMonitors of the Prometheus operator."""

    enabled: bool
    """Whether there are any."""
    interval: str
    """How often they are asked."""
    labels: dict[str, str]
    """Labels by which the operator finds them."""


class PrometheusRule(Section):
    """Alerts for the Prometheus operator."""

    enabled: bool
    """Whether there are any."""
    labels: dict[str, str]
    """Labels by which the operator finds them."""


class Monitoring(Section):
    """Prometheus."""

    serviceMonitor: ServiceMonitor
    """What is asked."""
    prometheusRule: PrometheusRule
    """What is worth waking somebody."""


class Registry(Section):
    """A small registry in the cluster, for trying out: plain HTTP, no passwords, one replica."""

    enabled: bool
    """Whether there is one; then it is `config.registry.prefix`."""
    host: str
    """Host and port under which nodes and pods both reach it: a node's address and `nodePort`. The nodes' container
    runtime has to be told that it speaks plain HTTP."""
    image: str
    """An image of the CNCF distribution registry, version 2."""
    command: list[str]
    """Its program, when that is not the image's entry point."""
    nodePort: int = Field(ge=1, le=65535)
    """Port on the nodes."""
    size: str
    """Size of its volume."""
    storageClass: str
    """Storage class; the cluster's default when empty."""
    resources: Anything
    """Requests and limits."""


class ServiceAccounts(Section):
    """Accounts of controller and endpoint."""

    annotations: dict[str, str]
    """Their annotations."""


class Tests(Section):
    """`helm test`: a real click."""

    spec: str
    """What is clicked, for example `gh/binder-examples/requirements/HEAD`; the first registered repository by
    default."""
    timeout: int = Field(ge=1)
    """Seconds; a build may be part of it."""


class Values(Section):
    """All values of the chart."""

    nameOverride: str = Field(max_length=43)
    """Name instead of `prebinder`."""
    fullnameOverride: str = Field(max_length=43)
    """Beginning of every object's name instead of the release's and the chart's."""
    image: Image
    config: Anything
    """Prebinder's configuration file, as on one machine: see docs/configuration.md."""
    hub: Hub
    secrets: list[MountedSecret]
    """Secrets that the configuration names as `{file: /etc/prebinder/secrets/<name>/<key>}`."""
    controllerToken: ControllerToken
    registryCredentials: RegistryCredentials
    controller: Controller
    endpoint: Endpoint
    builds: Builds
    servers: Servers
    ingress: Ingress
    gateway: Gateway
    networkPolicy: NetworkPolicies
    monitoring: Monitoring
    registry: Registry
    serviceAccounts: ServiceAccounts
    tests: Tests
    global_: Anything = Field(alias="global")
    """Handed to every chart by Helm; Prebinder reads nothing in it."""
