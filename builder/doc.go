// Package builder turns a pushed commit into platform images through BuildKit;
// it is the only package that imports BuildKit.
//
// drayd itself runs no git and checks nothing out: buildkitd fetches the
// commit, and this package reads the few files that it needs (.dray.yaml, the
// Dockerfile, .dockerignore) through buildkitd's gateway.
//
// What a build can reach. A build gets no entitlement, no secret that its
// Dockerfile can name, and registry credentials for exact hosts only, never for
// the hosts that the project's environments are promoted to. The credential
// for the source is offered under a random name that is made for each call, so
// that neither `RUN --mount=type=secret` nor `ADD <git URL>` can ask for it.
//
// Registries without TLS. Pushes and caches use plain HTTP where the registry's
// host says so. Base images are pulled by buildkitd under its own
// configuration: it uses plain HTTP for localhost and 127.0.0.0/8 by itself,
// and for every other host it needs `[registry."host:port"] http = true` in
// buildkitd.toml.
package builder
