"""Listens on TCP addresses inside a network namespace; each connection is told which one it reached."""

import asyncio
import sys


async def main(addresses: list[str]) -> None:
    servers = []
    for address in addresses:
        host, _, port = address.rpartition(":")

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = port) -> None:
            writer.write(name.encode())
            await writer.drain()
            writer.close()

        servers.append(await asyncio.start_server(answer, host.strip("[]"), int(port)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
