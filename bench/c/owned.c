/*
 * Loads for the BPF programs that note owners, all on loopback, and a look-up of their rows to compare with.
 *
 *     owned connect|datagram|connected|request COUNT    one operation after the other, COUNT times
 *     owned bulk COUNT                                  COUNT megabytes to another process by TCP, 128 KiB a call
 *     owned peers COUNT                                 a datagram to each of COUNT peers from one socket
 *     owned churn COUNT                                 COUNT connections with a byte, to one address after the other
 *     owned look|take FD KEY VALUE ENTRIES              all entries of the hash map FD by one batch; prints seconds
 *
 * connect    connect, accept, a byte each way, close
 * datagram   sendto and recvfrom with addresses
 * connected  send and recv of a connected socket of UDP
 * request    a byte to another process and one back, through one TCP connection
 *
 * Run it only in a network namespace made for it. Who runs it counts the CPU that it took, children included. Ports are
 * those of the namespace: connections end with a reset, so that none waits.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 4000000, CHUNK = 128 << 10, PAYLOAD = 100, CHURN_PEERS = 200 };

static char buffer[CHUNK];

static void must(int held, const char *doing)
{
	if (!held) {
		perror(doing);
		exit(2);
	}
}

static int made(int type)
{
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

	must(fd >= 0, "socket");
	return fd;
}

/* A socket that is bound to loopback, listening if it is TCP's; its address. */
static int bound(int type, struct sockaddr_in *address)
{
	socklen_t size = sizeof(*address);
	int fd = made(type);

	*address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	if (type == SOCK_STREAM)
		address->sin_addr.s_addr = htonl(INADDR_ANY);
	must(!bind(fd, (struct sockaddr *)address, size), "bind");
	must(type != SOCK_STREAM || !listen(fd, 512), "listen");
	must(!getsockname(fd, (struct sockaddr *)address, &size), "getsockname");
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return fd;
}

static void one_byte(int from, int to)
{
	must(send(from, buffer, 1, 0) == 1, "send");
	must(recv(to, buffer, 1, 0) == 1, "recv");
}

/* A connection from here to here, with a byte there and perhaps one back. */
static void connection(int listener, const struct sockaddr_in *to, int back)
{
	struct linger reset = { 1, 0 };
	struct sockaddr_in peer;
	socklen_t size = sizeof(peer);
	int client = made(SOCK_STREAM), server;

	must(!setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)), "SO_LINGER");
	must(!connect(client, (const struct sockaddr *)to, sizeof(*to)), "connect");
	server = accept4(listener, (struct sockaddr *)&peer, &size, SOCK_CLOEXEC);
	must(server >= 0, "accept");
	one_byte(client, server);
	if (back)
		one_byte(server, client);
	close(client);
	close(server);
}

static void connects(long count)
{
	struct sockaddr_in address;
	int listener = bound(SOCK_STREAM, &address);

	while (count--)
		connection(listener, &address, 1);
}

static void churns(long count)
{
	struct sockaddr_in address;
	int listener = bound(SOCK_STREAM, &address);

	for (long i = 0; i < count; i++) {
		address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + i % CHURN_PEERS);
		connection(listener, &address, 0);
	}
}

static void datagrams(long count, int connected)
{
	struct sockaddr_in address, peer;
	socklen_t size = sizeof(peer);
	int server = bound(SOCK_DGRAM, &address), client = made(SOCK_DGRAM);
	ssize_t done;

	must(!connected || !connect(client, (struct sockaddr *)&address, sizeof(address)), "connect");
	while (count--) {
		if (connected)
			done = send(client, buffer, PAYLOAD, 0);
		else
			done = sendto(client, buffer, PAYLOAD, 0, (struct sockaddr *)&address, sizeof(address));
		must(done == PAYLOAD, "send");
		if (connected)
			done = recv(server, buffer, sizeof(buffer), 0);
		else
			done = recvfrom(server, buffer, sizeof(buffer), 0, (struct sockaddr *)&peer, &size);
		must(done == PAYLOAD, "recv");
	}
}

static void peers(long count)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	int client = made(SOCK_DGRAM);

	/* Nobody listens; the errors that come back are told with the next datagram, which is sent again. */
	for (long i = 0; i < count; i++) {
		address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + i / 50000);
		address.sin_port = htons(10000 + i % 50000);
		while (sendto(client, buffer, PAYLOAD, 0, (struct sockaddr *)&address, sizeof(address)) < 0)
			must(errno == ECONNREFUSED, "sendto");
	}
}

static void send_bulk(int fd, long count)
{
	for (long left = count * 1000000; left > 0; left -= CHUNK)
		must(send(fd, buffer, CHUNK, 0) == CHUNK, "send");
}

static void request(int fd, long count)
{
	while (count--)
		one_byte(fd, fd);
}

/* Of a size that does not change by itself: how full they are decides what the caches of the processor still hold. */
static void fix_buffers(int fd)
{
	int on = 1, size = 1 << 20;

	must(!setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)), "TCP_NODELAY");
	must(!setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)), "SO_SNDBUFFORCE");
	must(!setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)), "SO_RCVBUFFORCE");
}

/* Two processes with a connection between them; this one answers each byte, or only receives. */
static void pair(long count, void (*talk)(int fd, long count), int answers)
{
	struct sockaddr_in address;
	int listener = bound(SOCK_STREAM, &address), fd, status;
	pid_t child = fork();

	must(child >= 0, "fork");
	if (!child) {
		fd = made(SOCK_STREAM);
		must(!connect(fd, (struct sockaddr *)&address, sizeof(address)), "connect");
		fix_buffers(fd);
		talk(fd, count);
		_exit(0);
	}
	fd = accept(listener, NULL, NULL);
	must(fd >= 0, "accept");
	fix_buffers(fd);
	while (recv(fd, buffer, answers ? 1 : CHUNK, 0) > 0)
		if (answers)
			must(send(fd, buffer, 1, 0) == 1, "send");
	must(waitpid(child, &status, 0) == child && !status, "the other process");
}

/* BPF_MAP_LOOKUP_BATCH and BPF_MAP_LOOKUP_AND_DELETE_BATCH into memory that was not touched before, as a reader's. */
static void batch(int command, int map, size_t key, size_t value, uint32_t entries)
{
	union bpf_attr attributes = { 0 };
	struct timespec begun, ended;
	uint64_t place = 0;
	char *keys = malloc(key * entries), *values = malloc(value * entries);

	must(keys && values, "malloc");
	attributes.batch.out_batch = (uintptr_t)&place;
	attributes.batch.keys = (uintptr_t)keys;
	attributes.batch.values = (uintptr_t)values;
	attributes.batch.count = entries;
	attributes.batch.map_fd = map;
	clock_gettime(CLOCK_MONOTONIC, &begun);
	must(!syscall(SYS_bpf, command, &attributes, sizeof(attributes)) || errno == ENOENT, "bpf");
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("%u %.9f\n", attributes.batch.count,
	       ended.tv_sec - begun.tv_sec + (ended.tv_nsec - begun.tv_nsec) / 1e9);
}

int main(int count, char **words)
{
	const char *mode = count > 2 ? words[1] : "";
	long number = count > 2 ? atol(words[2]) : 0;

	if (count == 6 && (!strcmp(mode, "look") || !strcmp(mode, "take")))
		batch(*mode == 'l' ? BPF_MAP_LOOKUP_BATCH : BPF_MAP_LOOKUP_AND_DELETE_BATCH, number, atol(words[3]),
		      atol(words[4]), atol(words[5]));
	else if (count != 3 || number < 1 || number > MOST)
		return fprintf(stderr, "usage: owned MODE COUNT, see the source\n"), 2;
	else if (!strcmp(mode, "connect"))
		connects(number);
	else if (!strcmp(mode, "churn"))
		churns(number);
	else if (!strcmp(mode, "datagram") || !strcmp(mode, "connected"))
		datagrams(number, *mode == 'c');
	else if (!strcmp(mode, "peers"))
		peers(number);
	else if (!strcmp(mode, "request"))
		pair(number, request, 1);
	else if (!strcmp(mode, "bulk"))
		pair(number, send_bulk, 0);
	else
		return fprintf(stderr, "owned: no mode %s\n", mode), 2;
	return 0;
}
