/*
 * Loads that cross the lab's router, from sockets in the client's namespace to sockets in the server's.
 *
 *     through bulk CLIENT SERVER SECONDS     one TCP connection, as much as it takes
 *     through connect CLIENT SERVER COUNT    whole TCP connections, one after the other: connect, one byte each way, close
 *     through udp CLIENT SERVER COUNT        datagrams of 512 flows in turn, to an address that swallows them
 *     through syn CLIENT SERVER SECONDS      TCP SYN of 400,000 sources in turn, as many as go, to that address
 *
 * CLIENT and SERVER are paths of network namespaces. A number more, RATE, holds `connect` to so many a second. Prints one
 * JSON object: how many bytes, connections or packets, the seconds, and the CPU seconds of all processes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netpacket/packet.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FLOWS = 512, BATCH = 64, SOURCES = 400000, BLOCK = 256 << 10, MOST = 50000000, MOST_SECONDS = 60 };

static const char SERVER[] = "198.51.100.2", SILENT[] = "203.0.113.129";
enum { BULK_PORT = 7010, CONNECT_PORT = 7011, UDP_PORT = 7012, SYN_PORT = 7013, FIRST_PORT = 10000, PORTS = 50000 };

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static double cpu(int who)
{
	struct rusage used;

	getrusage(who, &used);
	return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

static void fail(const char *what)
{
	fprintf(stderr, "through: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void enter(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		fail(path);
	close(fd);
}

static struct sockaddr_in address(const char *text, int port)
{
	struct sockaddr_in made = {.sin_family = AF_INET, .sin_port = htons(port)};

	inet_pton(AF_INET, text, &made.sin_addr);
	return made;
}

static int listen_on(const char *namespace, int port)
{
	struct sockaddr_in at = address(SERVER, port);
	int one = 1, fd;

	enter(namespace);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 1024))
		fail("listen");
	return fd;
}

static double bulk(const char *client, const char *server, double seconds)
{
	static char block[BLOCK];
	int listener = listen_on(server, BULK_PORT), fd;
	struct sockaddr_in to = address(SERVER, BULK_PORT);
	double start, sent = 0;
	pid_t child;

	enter(client);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	child = fork();
	if (child == 0) {
		close(fd);
		fd = accept(listener, NULL, NULL);
		while (recv(fd, NULL, BLOCK, MSG_TRUNC) > 0)
			;
		_exit(0);
	}
	if (child < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		fail("connect");
	for (start = now(); now() - start < seconds;) {
		ssize_t n = send(fd, block, sizeof block, 0);

		if (n < 0)
			fail("send");
		sent += n;
	}
	close(fd);
	waitpid(child, NULL, 0);
	return sent;
}

static double connections(const char *client, const char *server, long count, double rate)
{
	int listener = listen_on(server, CONNECT_PORT);
	struct sockaddr_in to = address(SERVER, CONNECT_PORT);
	double start = now();
	long done;

	enter(client);
	for (done = 0; done < count; done++) {
		/* Every connection has a port of its own, and an address of its own when the ports are used up. */
		struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(FIRST_PORT + done % PORTS)};
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, accepted;
		char byte = 0;

		while (rate > 0 && now() - start < done / rate)
			usleep(200);
		from.sin_addr.s_addr = htonl(0x0a020001 + getpid() % 4096 * 64 + done / PORTS);
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		if (bind(fd, (struct sockaddr *)&from, sizeof from) || connect(fd, (struct sockaddr *)&to, sizeof to))
			fail("connect");
		accepted = accept(listener, NULL, NULL);
		if (send(fd, &byte, 1, 0) != 1 || recv(accepted, &byte, 1, 0) != 1 || send(accepted, &byte, 1, 0) != 1 ||
		    recv(fd, &byte, 1, 0) != 1)
			fail("exchange");
		close(fd);
		recv(accepted, &byte, 1, 0);
		close(accepted);
	}
	return done;
}

static double datagrams(const char *client, long count)
{
	static struct mmsghdr messages[FLOWS];
	struct iovec vector = {"datagram", 8};
	struct sockaddr_in to = address(SILENT, UDP_PORT);
	int fds[FLOWS];
	long sent = 0;

	enter(client);
	for (int i = 0; i < FLOWS; i++) {
		struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(FIRST_PORT + i)};

		from.sin_addr.s_addr = htonl(0x0a020001);
		fds[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		if (bind(fds[i], (struct sockaddr *)&from, sizeof from))
			fail("bind");
		messages[i].msg_hdr = (struct msghdr){&to, sizeof to, &vector, 1, NULL, 0, 0};
	}
	for (int i = 0; sent < count; i = (i + 1) % FLOWS) {
		int n = sendmmsg(fds[i], messages, BATCH, 0);

		if (n < 0)
			fail("sendmmsg");
		sent += n;
	}
	return sent;
}

struct frame {
	struct ether_header ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

static uint16_t checksum(const void *data, size_t size, uint32_t sum)
{
	const unsigned char *p = data;

	for (; size > 1; size -= 2, p += 2)
		sum += p[0] << 8 | p[1];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum);
}

/* The link addresses are those of the lab (src/conntracker/lab/topology.py). */
static void make_syn(struct frame *f, int number)
{
	struct {
		struct tcphdr tcp;
		uint32_t from, to;
		uint16_t protocol, size;
	} pseudo;

	memset(f, 0, sizeof *f);
	memcpy(f->ethernet.ether_dhost, "\2\0\0\0\1\1", 6);
	memcpy(f->ethernet.ether_shost, "\2\0\0\0\1\2", 6);
	f->ethernet.ether_type = htons(ETHERTYPE_IP);
	f->ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP, .tot_len = htons(40)};
	f->ip.saddr = htonl(0x0a200001 + number);
	f->ip.daddr = address(SILENT, 0).sin_addr.s_addr;
	f->ip.check = checksum(&f->ip, sizeof f->ip, 0);
	f->tcp = (struct tcphdr){.source = htons(FIRST_PORT + number % PORTS), .dest = htons(SYN_PORT), .doff = 5, .syn = 1};
	memset(&pseudo, 0, sizeof pseudo);
	pseudo.tcp = f->tcp;
	pseudo.from = f->ip.saddr;
	pseudo.to = f->ip.daddr;
	pseudo.protocol = htons(IPPROTO_TCP);
	pseudo.size = htons(sizeof f->tcp);
	f->tcp.check = checksum(&pseudo, sizeof pseudo, 0);
}

static double syns(const char *client, double seconds)
{
	struct frame *frames = malloc(SOURCES * sizeof *frames);
	struct mmsghdr *messages = calloc(SOURCES, sizeof *messages);
	struct iovec *vectors = calloc(SOURCES, sizeof *vectors);
	struct sockaddr_ll at = {.sll_family = AF_PACKET};
	double start, sent = 0;
	int fd, next = 0;

	enter(client);
	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	at.sll_ifindex = if_nametoindex("eth0");
	if (!frames || !messages || !vectors || bind(fd, (struct sockaddr *)&at, sizeof at))
		fail("packet socket");
	for (int i = 0; i < SOURCES; i++) {
		make_syn(&frames[i], i);
		vectors[i] = (struct iovec){&frames[i], sizeof frames[i]};
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	for (start = now(); now() - start < seconds; next %= SOURCES) {
		int n = sendmmsg(fd, &messages[next], next + BATCH < SOURCES ? BATCH : SOURCES - next, 0);

		if (n < 0 && errno != ENOBUFS && errno != EAGAIN)
			fail("sendmmsg");
		next += n > 0 ? n : 0;
		sent += n > 0 ? n : 0;
	}
	return sent;
}

int main(int argc, char **argv)
{
	double amount = argc > 4 ? atof(argv[4]) : 0, rate = argc > 5 ? atof(argv[5]) : 0, start, done;
	int timed = argc > 1 && (!strcmp(argv[1], "bulk") || !strcmp(argv[1], "syn"));

	if (argc < 5 || amount <= 0 || amount > (timed ? MOST_SECONDS : MOST)) {
		fprintf(stderr, "through bulk|connect|udp|syn CLIENT SERVER AMOUNT [RATE]\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	alarm(5 * MOST_SECONDS);
	start = now();
	if (!strcmp(argv[1], "bulk"))
		done = bulk(argv[2], argv[3], amount);
	else if (!strcmp(argv[1], "connect"))
		done = connections(argv[2], argv[3], amount, rate);
	else if (!strcmp(argv[1], "syn"))
		done = syns(argv[2], amount);
	else
		done = datagrams(argv[2], amount);
	printf("{\"n\": %.0f, \"seconds\": %.4f, \"cpu\": %.4f}\n", done, now() - start,
	       cpu(RUSAGE_SELF) + cpu(RUSAGE_CHILDREN));
	return 0;
}
