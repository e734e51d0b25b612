"""Targets that the tests request."""

INSTANCE = "/metadata/instance?api-version=2021-02-01"
TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
VERSIONS = "/metadata/versions"
