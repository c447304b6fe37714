// A bare forward proxy that opens tunnels and puts one header: what a program of this class costs without any policy
// or audit. It is measured by `make bench` where Go is installed, and is no part of Ostiary.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"log"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/elazarl/goproxy"
)

// leaves keeps one certificate a host, as Ostiary does.
type leaves struct {
	mutex sync.Mutex
	known map[string]*tls.Certificate
}

func (store *leaves) Fetch(host string, make func() (*tls.Certificate, error)) (*tls.Certificate, error) {
	store.mutex.Lock()
	defer store.mutex.Unlock()
	if found := store.known[host]; found != nil {
		return found, nil
	}
	made, err := make()
	if err == nil {
		store.known[host] = made
	}
	return made, err
}

func main() {
	listen := flag.String("listen", "", "address to listen on")
	authority := flag.String("ca", "", "PEM file with the certificate and the key that sign leaves")
	roots := flag.String("roots", "", "PEM file with the roots of upstreams")
	credential := flag.String("credential", "", "what is put into Authorization")
	flag.Parse()

	ca, err := tls.LoadX509KeyPair(*authority, *authority)
	if err != nil {
		log.Fatal(err)
	}
	pem, err := os.ReadFile(*roots)
	if err != nil {
		log.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		log.Fatal("no roots in " + *roots)
	}

	proxy := goproxy.NewProxyHttpServer()
	proxy.CertStore = &leaves{known: map[string]*tls.Certificate{}}
	// Go keeps two idle connections a host unless told otherwise; Ostiary keeps 64.
	proxy.Tr = &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: pool, ClientSessionCache: tls.NewLRUClientSessionCache(64)},
		MaxIdleConns:        1024,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
	}
	action := &goproxy.ConnectAction{Action: goproxy.ConnectMitm, TLSConfig: goproxy.TLSConfigFromCA(&ca)}
	proxy.OnRequest().HandleConnectFunc(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
		return action, host
	})
	proxy.OnRequest().DoFunc(func(request *http.Request, _ *goproxy.ProxyCtx) (*http.Request, *http.Response) {
		request.Header.Set("Authorization", *credential)
		return request, nil
	})
	log.Fatal(http.ListenAndServe(*listen, proxy))
}
