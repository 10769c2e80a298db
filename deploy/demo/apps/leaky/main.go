// Command leaky prints the fingerprint of an SSH host key that it makes up. It
// is a sample of an image that Dray refuses: it runs as root, and is linked with
// a version of golang.org/x/crypto in which a critical flaw is known.
package main

import (
	"crypto/ed25519"
	"fmt"
	"log"
	"net"

	"golang.org/x/crypto/ssh"
)

func main() {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		log.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ssh.FingerprintSHA256(signer.PublicKey()))

	config := &ssh.ServerConfig{
		PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
			return nil, fmt.Errorf("nobody may come in")
		},
	}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", ":2222")
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer conn.Close()
			if _, _, _, err := ssh.NewServerConn(conn, config); err != nil {
				log.Print(err)
			}
		}()
	}
}
