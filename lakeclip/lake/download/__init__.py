"""From addresses to pictures: `stream.Downloads` fetches what a source only names, politely and in bounded memory."""
