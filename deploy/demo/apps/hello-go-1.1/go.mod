module acme.example/hello-go

go 1.26

require github.com/google/uuid v1.6.0

require golang.org/x/net v0.32.0
