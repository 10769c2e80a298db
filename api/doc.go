// Package api is Dray's HTTP face: webhooks in, the REST API under /api/v1 with
// its event streams and OpenAPI description, and the health endpoints.
package api
